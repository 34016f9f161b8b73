"""Curves: means with a band that a logarithmic axis can show, drawn as pictures and pages that hold the values."""

from __future__ import annotations

import json
import re
import statistics
import struct
import warnings
from typing import Any

import pytest

from service.analysis import colours
from service.analysis.curve_page import curves_html
from service.analysis.curve_png import curves_png
from service.analysis.curves import CurveFigure, CurvePanel, band_edges, first_below, mean_curve, tail_mean

HOSTILE = "$x_1$ </script><b>bold</b> 研究 \n %{z}"


def a_figure(panels: int = 3, curves: int = 2, *, title: str = "t") -> CurveFigure:
    runs = [{0.0: 1.0, 10.0: 0.1, 20.0: 1e-3}, {0.0: 1.0, 10.0: 0.3, 20.0: 1e-2}]
    drawn = [mean_curve(runs, label=f"curve {number}", colour="#0072b2", marker="circle") for number in range(curves)]
    bound = mean_curve(runs, label="bound", colour="#d55e00", dash="dashed", with_band=False)
    panel = CurvePanel(title if panels > 1 else "", (*drawn, bound))
    return CurveFigure(title, (title,), "steps", "value", (panel,) * panels, legend_title="λ")


class TestMeanCurve:
    def test_it_is_the_mean_with_one_sample_standard_deviation_on_both_sides(self) -> None:
        values = [0.5, 0.6, 0.9]
        curve = mean_curve([{1.0: value} for value in values], label="", colour="")
        assert curve.mean == pytest.approx([statistics.mean(values)])
        assert curve.high == pytest.approx([statistics.mean(values) + statistics.stdev(values)])
        assert curve.low == pytest.approx([0.5])  # mean − std is 0.459, below the lowest run
        assert curve.n == 3

    def test_the_lower_edge_is_mean_minus_std_where_that_is_above_the_lowest_run(self) -> None:
        values = [0.1, 0.9, 1.0, 1.0, 1.0]
        assert band_edges(values)[0] == pytest.approx(statistics.mean(values) - statistics.stdev(values))

    def test_the_band_never_reaches_0_where_every_run_is_above_it(self) -> None:
        low, _ = band_edges([1e-9, 1.0, 1e-9])
        assert low == 1e-9

    def test_one_run_has_no_band(self) -> None:
        assert mean_curve([{0.0: 1.0}], label="", colour="").low == ()

    def test_only_places_that_every_run_has_are_there(self) -> None:
        assert mean_curve([{0.0: 1.0, 1.0: 0.5}, {0.0: 1.0, 2.0: 0.5}], label="", colour="").x == (0.0,)

    def test_what_a_logarithmic_axis_cannot_show_is_left_out(self) -> None:
        run = {0.0: 1.0, 1.0: 0.0, 2.0: -1e-17, 3.0: float("inf"), 4.0: 0.5}
        assert mean_curve([run], label="", colour="").x == (0.0, 4.0)

    def test_no_runs_make_no_curve(self) -> None:
        with pytest.raises(ValueError, match="at least one run"):
            mean_curve([], label="", colour="")


@pytest.mark.parametrize("size", [1e-250, 1e-170, 1e170, 1e249])
def test_a_band_is_as_wide_at_every_size(size: float) -> None:
    values = [0.1, 0.9, 1.0, 1.0, 1.0]
    assert band_edges([size * value for value in values]) == pytest.approx(
        tuple(size * edge for edge in band_edges(values)), rel=1e-12, abs=0
    )
    assert tail_mean({float(place): size * value for place, value in enumerate(values)}, 1.0) == pytest.approx(
        size * statistics.mean(values), rel=1e-12, abs=0
    )


def test_a_band_ends_where_the_axis_does() -> None:
    assert band_edges([1.7e308, 1.0]) == (1.0, 1e250)
    assert band_edges([1.7e308, -1.7e308]) == (-1.7e308, 1e250)  # their spread is no float


def test_curves_of_a_training_that_diverged_can_be_drawn_without_a_warning() -> None:
    runs = [{0.0: 1.0, 9.0: 1e160, 18.0: 2e250, 27.0: 1e300}, {0.0: 1e-3, 9.0: 1e150, 18.0: 1.0, 27.0: 1.7e308}]
    curve = mean_curve(runs, label="λ", colour="#0072b2")
    assert (curve.x, curve.mean[-1], curve.high[-1]) == ((0.0, 9.0, 18.0), 1e250, 1e250)
    figure = CurveFigure("t", (), "steps", "value", (CurvePanel("", (curve,)),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert curves_png(figure)
        assert "1e+250" in curves_html(figure)


def test_a_run_ends_at_the_mean_of_its_tail() -> None:
    run = {float(place): float(place) for place in range(101)}
    assert tail_mean(run, 0.02) == pytest.approx((98 + 99 + 100) / 3)
    assert tail_mean({0.0: 3.0}, 0.02) == 3.0


def test_a_level_is_reached_where_the_curve_stays_below_it() -> None:
    curve = mean_curve([{0.0: 1.0, 1.0: 0.1, 2.0: 0.9, 3.0: 0.2, 4.0: 0.1}], label="", colour="")
    assert first_below(curve, 0.5) == 3.0
    assert first_below(curve, 1.0) == 0.0
    assert first_below(curve, 0.05) is None


@pytest.mark.parametrize(("panels", "curves"), [(1, 1), (1, 11), (3, 2)])
def test_every_figure_can_be_drawn_without_a_warning(panels: int, curves: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = curves_png(a_figure(panels, curves, title=HOSTILE))
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert 1_000 < width < 3_000
    assert 600 < height < 1_500


def test_the_same_figure_gives_the_same_picture() -> None:
    assert curves_png(a_figure()) == curves_png(a_figure())


def test_the_page_holds_the_values_and_needs_no_network() -> None:
    page = curves_html(a_figure())
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)\s*=", page)
    lines = [trace for trace in traces(page) if trace.get("customdata")]
    assert len(lines) == 9
    assert "after 10 steps: 0.2" in str(lines[0]["customdata"])
    assert "n = 2" in str(lines[0]["customdata"])
    assert [trace["name"] for trace in lines if trace["showlegend"]] == ["curve 0", "curve 1", "bound"]


def test_text_of_others_is_no_markup_of_the_page() -> None:
    page = curves_html(a_figure(title=HOSTILE))
    assert "<b>bold</b>" not in page
    assert page.count("</script>") == page.count("<script")


def test_colours_in_an_order_get_brighter_and_none_is_pale() -> None:
    inks = colours.ordered(11)
    brightness = [sum(int(ink[start : start + 2], 16) for start in (1, 3, 5)) for ink in inks]
    assert brightness == sorted(brightness)
    assert len(set(inks)) == 11
    assert max(brightness) < 600
    assert len(colours.ordered(1)) == 1


def traces(page: str) -> list[dict[str, Any]]:
    start = page.index("[", page.rindex("Plotly.newPlot("))
    found, _ = json.JSONDecoder().raw_decode(page[start:])
    assert isinstance(found, list)
    return found
