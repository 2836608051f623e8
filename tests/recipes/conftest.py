"""Recipes train in these tests' own process, many times over."""

import pytest


@pytest.fixture(autouse=True)
def _quick(quick_collections):
    """See `quick_collections`."""
