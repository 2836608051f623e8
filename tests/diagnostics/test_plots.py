"""Figures carry what they claim: axes with units, both curves, 800 pixels, reproducible bytes."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from hf_align.diagnostics.overoptimization import Curve
from hf_align.diagnostics.plots import gain_figure, overoptimization_figure, save_figure


@pytest.fixture(scope="module")
def curve():
    rng = np.random.default_rng(0)
    gold = np.array([1.9, 2.2, 2.3, 1.8])[:, None] + rng.normal(size=(4, 64))
    proxy = np.array([0.0, 1.0, 2.0, 3.0])[:, None] + rng.normal(size=(4, 64))
    return Curve([0, 50, 100, 150], [0.0, 0.8, 1.4, 2.2], gold=gold, proxy=proxy)


def png_size(data: bytes) -> tuple[int, int]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_axes_name_quantity_and_unit_and_hold_the_means(curve):
    gold_axis, proxy_axis = overoptimization_figure(curve, peak_index=2).axes
    assert proxy_axis.get_xlabel() == "√KL(π‖π_ref), √nats, summed over the completion"
    assert "Gold reward" in gold_axis.get_ylabel()
    assert "Proxy score" in proxy_axis.get_ylabel()
    assert gold_axis.lines[0].get_xdata() == pytest.approx(curve.sqrt_kl)
    assert gold_axis.lines[0].get_ydata() == pytest.approx(curve.gold.mean(axis=1))
    assert proxy_axis.lines[0].get_ydata() == pytest.approx(curve.proxy.mean(axis=1))
    labels = [text.get_text() for text in gold_axis.get_legend().get_texts()]
    assert {"shipped policy", "reference", "gold peak (smoothed)"} <= set(labels)


def test_the_shipped_policy_is_marked_where_it_is(curve):
    axis = overoptimization_figure(curve).axes[0]
    shipped = next(line for line in axis.lines if line.get_label() == "shipped policy")
    assert shipped.get_xdata()[0] == 2.2
    assert shipped.get_ydata()[0] == pytest.approx(curve.gold[-1].mean())


def test_one_panel_without_proxy_and_an_error_without_both(curve):
    assert len(overoptimization_figure(Curve([0, 1], [0, 1], gold=curve.gold[:2])).axes) == 1
    with pytest.raises(ValueError, match="neither gold nor proxy"):
        overoptimization_figure(Curve([0, 1], [0, 1]))


def test_saved_pngs_are_800_pixels_wide_and_reproducible(curve, tmp_path):
    first = save_figure(overoptimization_figure(curve), tmp_path / "a" / "x.png").read_bytes()
    second = save_figure(overoptimization_figure(curve), tmp_path / "y.png").read_bytes()
    assert png_size(first)[0] == 800
    assert first == second
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "y.png"]


def test_svg_too_and_other_formats_are_refused(curve, tmp_path):
    figure = overoptimization_figure(curve)
    assert b"<svg" in save_figure(figure, tmp_path / "x.svg").read_bytes()
    with pytest.raises(ValueError, match=r"expected \.png or \.svg"):
        save_figure(figure, tmp_path / "x.jpg")


def test_histograms_show_shares_of_each_policy(tmp_path):
    rng = np.random.default_rng(0)
    figure = gain_figure(
        rng.normal(size=300), rng.normal(1, 1, 500), rng.integers(5, 20, 300), np.full(500, 9)
    )
    for axis in figure.axes:
        filled = [patch for patch in axis.patches if hasattr(patch, "get_height")]
        total = sum(patch.get_height() for patch in filled)
        assert total == pytest.approx(2)  # both histograms sum to 1
    assert figure.axes[1].get_xlabel().startswith("Completion length, tokens")


def test_constant_values_still_draw(tmp_path):
    flat = Curve([0, 1], [0.0, 0.0], gold=np.ones((2, 1)))
    save_figure(overoptimization_figure(flat), tmp_path / "flat.png")
    save_figure(gain_figure(np.ones(3), np.ones(3), np.ones(3), np.ones(3)), tmp_path / "g.png")
    assert png_size((tmp_path / "g.png").read_bytes())[0] == 800
