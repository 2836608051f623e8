"""What recipes that serve an app check before anything is trained or loaded."""

from __future__ import annotations

from hf_align.types import InputError


def check_serving(recipe: str, port: int | None) -> None:
    """Refuses what cannot be served.

    Raises:
        InputError: The apps' extra is not installed, or the port is none.
    """
    try:
        import hf_align.ui  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{recipe} needs {error.name}: pip install -c constraints.txt 'hf_align[ui]'"
        ) from error
    if port is not None and not 0 < port < 65_536:
        raise InputError(f"port is {port}; give 1 to 65535")
