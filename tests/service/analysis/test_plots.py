"""Plots: valid pictures of the right size, pages that hold the values and need no network."""

from __future__ import annotations

import io
import json
import re
import struct
import warnings
from typing import Any

import pytest
from matplotlib.image import imread

from search_spaces import CategoricalParameter, FloatParameter
from service.analysis import colours
from service.analysis.aggregation import Summary, aggregate
from service.analysis.axes import scale_axis
from service.analysis.labelling import point_label, unit_of, value_label
from service.analysis.plots import heat_map_html, heat_map_png, is_continuous, profile_html, profile_png
from service.analysis.profile import Profile, profile
from service.analysis.surface import Surface, surface
from service.study import TrialState
from tests.service.analysis.records import configuration, grid, results, trial

HOSTILE = "$x_1$ </script><b>bold</b> 研究 \n %{z}"


def a_grid() -> Surface:
    points = grid(sampling=["uniform", "lipschitz"])
    return surface(results(points, [0.9 + number / 1000 for number in range(20)]), metric="m", mode="max")


def a_continuum(count: int = 30) -> Surface:
    points: list[dict[str, Any]] = [
        {"lambda": number / count, "rho": 0.01 * 50 ** (number / count)} for number in range(count)
    ]
    return surface(results(points, [0.8 + number / 1000 for number in range(count)]), metric="m", mode="min")


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.mark.parametrize(
    "shown",
    [a_grid(), a_continuum(), surface([], metric="m", mode="max")],
    ids=["grid", "continuum", "empty"],
)
def test_every_surface_can_be_drawn(shown: Surface) -> None:
    width, height = size_of(heat_map_png(shown, title=HOSTILE, metric="val_accuracy"))
    assert 500 < width < 2_000
    assert 200 < height < 1_500
    assert "<html>" in heat_map_html(shown, title=HOSTILE, metric="val_accuracy")


DIVERGED = {
    "large": [1e300, 3e305, 2.0, 1e200],
    "the largest": [1.79e308, 1.7e308, 1.79e308, 1.7e308],
    "on both sides": [1.79e308, -1.79e308, 1.0, 0.0],
    "small": [1e-310, 2e-310, 5e-320, 0.0],
}


@pytest.mark.parametrize("values", DIVERGED.values(), ids=DIVERGED)
@pytest.mark.parametrize("count", [4, 30], ids=["grid", "continuum"])
def test_every_number_can_be_drawn_without_a_warning(values: list[float], count: int) -> None:
    configurations = [configuration(number, rho=0.1, **{"lambda": number / 40}) for number in range(1, count + 1)]
    trials = [
        trial(of, seed, values[(of.number + seed * (of.number % 3)) % 4]) for of in configurations for seed in (0, 1)
    ]
    shown = surface(aggregate(configurations, trials), metric="m", mode="min")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        size_of(heat_map_png(shown, title="", metric="val_loss"))
        page = heat_map_html(shown, title="", metric="val_loss")
    assert "Infinity" not in page[page.rindex("Plotly.newPlot(") :]


def test_parameters_of_any_size_can_be_drawn_without_a_warning() -> None:
    for values in ([10.0**power for power in range(-308, 309, 40)], [5e306 * number for number in range(18)]):
        shown = surface(
            results([{"lambda": 0.5, "rho": value} for value in values], [0.5] * len(values)),
            metric="val_accuracy",
            mode="max",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            heat_map_png(shown, title="", metric="m")
            heat_map_html(shown, title="", metric="m")


def test_a_picture_grows_with_its_grid() -> None:
    one = surface(results([{"lambda": 0.5, "rho": 0.1}], [0.5]), metric="m", mode="max")
    assert size_of(heat_map_png(a_grid(), title="", metric="m")) > size_of(heat_map_png(one, title="", metric="m"))


@pytest.mark.parametrize(
    ("y", "values"),
    [
        ("rho", [0.013111, 0.3262]),
        ("base_optimizer", ["adamw", "W" * 60]),
        ("rho", [0.00001 * 1.7**n for n in range(25)]),
    ],
    ids=["digits", "words", "a continuum"],
)
def test_nothing_is_cut_off_at_the_edges(y: str, values: list[Any]) -> None:
    shown = surface(
        results([{"lambda": n, y: value} for n, value in enumerate(values)], [0.5] * len(values)),
        metric="m",
        mode="max",
        y=y,
    )
    picture = imread(io.BytesIO(heat_map_png(shown, title="t", metric="m")))[..., :3]
    edges = (picture[:, :4], picture[:, -4:], picture[:4], picture[-4:])
    assert all((edge == 1).all() for edge in edges)


def test_the_same_surface_gives_the_same_picture() -> None:
    assert heat_map_png(a_grid(), title="t", metric="m") == heat_map_png(a_grid(), title="t", metric="m")


def test_the_page_holds_every_value_with_its_spread() -> None:
    page = heat_map_html(a_grid(), title="digits", metric="val_accuracy")
    texts = [trace["text"] for trace in traces(page) if trace["type"] == "scatter"]
    assert [len(text) for text in texts] == [10, 10]
    # λ = 0, ρ = 0.1 is the last of ten pairs: 0.918 with uniform sampling, 0.01 more for seed 1; std 0.01/√2
    assert [text[0] for text in texts] == ["92.30 ± 0.71<br>n = 2", "<b>92.40 ± 0.71</b><br>n = 2"]
    hover = "".join(str(trace.get("customdata")) for trace in traces(page))
    assert "95 % interval" in hover
    assert "λ = 1/t, ρ = 0.2" in hover


def test_the_page_needs_no_network() -> None:
    page = heat_map_html(a_grid(), title="digits", metric="val_accuracy")
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)\s*=", page)
    assert "Plotly.newPlot" in page


def test_text_of_a_user_is_no_markup_of_the_page() -> None:
    page = heat_map_html(a_grid(), title=HOSTILE, metric="<img src=x>")
    assert "<b>bold</b>" not in page
    assert "<img src=x>" not in page
    assert page.count("</script>") == page.count("<script")


def test_a_continuum_is_a_scatter_plot_on_a_logarithmic_axis() -> None:
    assert is_continuous(a_continuum())
    assert not is_continuous(a_grid())
    page = heat_map_html(a_continuum(), title="", metric="m")
    assert {trace["type"] for trace in traces(page)} == {"scatter"}
    assert '"type":"log"' in page


def test_an_axis_is_logarithmic_only_where_its_values_lie_so() -> None:
    assert scale_axis([0.01 * 1.2**number for number in range(20)]).is_log
    assert not scale_axis([number / 20 for number in range(1, 21)]).is_log
    assert not scale_axis([0.0, 0.1, 0.01, 0.001]).is_log


@pytest.mark.parametrize("is_log", [True, False])
def test_an_axis_is_as_the_space_says_however_its_values_lie(is_log: bool) -> None:
    values = [0.02, 0.03, 0.3, 0.4] if is_log else [0.01 * 1.2**number for number in range(20)]
    assert scale_axis(values).is_log is not is_log
    assert scale_axis(values, is_log=is_log).is_log is is_log


@pytest.mark.parametrize("values", [[0.1], [0.15], [0.13, 0.17], [0.11, 0.115, 0.12, 0.123], [0.1, 0.11]])
def test_a_short_axis_is_linear_whatever_the_space_says(values: list[float]) -> None:
    axis = scale_axis(values, is_log=True)
    assert (axis.is_log, axis.ticks) == (False, None)
    assert axis.low < min(values) <= max(values) < axis.high


def test_a_figure_has_the_scales_of_the_search_space() -> None:
    points = [{"lambda": number / 40, "rho": 0.02 * 1.15**number} for number in range(40)]
    space = {"lambda": FloatParameter(low=0, high=1), "rho": FloatParameter(low=0.02, high=10)}
    logarithmic = {**space, "rho": FloatParameter(low=0.02, high=10, log=True)}
    for parameters, is_log in ((space, False), (logarithmic, True)):
        shown = surface(results(points, [0.5] * len(points)), metric="m", mode="max", parameters=parameters)
        assert (shown.x_log, shown.y_log) == (False, is_log)
        assert ('"type":"log"' in heat_map_html(shown, title="", metric="m")) is is_log
        assert heat_map_png(shown, title="", metric="m").startswith(b"\x89PNG")
    choices = {"rho": CategoricalParameter(choices=(0.1, 0.2))}
    assert surface(results(points, [0.5] * len(points)), metric="m", mode="max", parameters=choices).y_log is None


def test_words_among_numbers_lie_in_turn() -> None:
    axis = scale_axis([0.0, 0.5, 1.0, "1/t"])
    assert [axis.position(value) for value in (0, 0.5, 1, "1/t")] == [0.0, 1.0, 2.0, 3.0]
    assert axis.labels == ["0", "0.5", "1", "1/t"]


def test_a_cell_that_waits_is_drawn_without_a_warning() -> None:
    of, other = configuration(1, rho=0.1, **{"lambda": 0.5}), configuration(2, rho=0.1, **{"lambda": 1.0})
    waiting = aggregate([of, other], [trial(of, 0, None, TrialState.RUNNING), trial(other, 0, 0.5)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heat_map_png(surface(waiting, metric="m", mode="max"), title="", metric="val_accuracy")
        assert "no trial has a value yet" in heat_map_html(
            surface(waiting, metric="m", mode="max"), title="", metric="val_accuracy"
        )


@pytest.mark.parametrize("mean", [number / 20 for number in range(21)])
def test_text_stands_out_from_every_colour(mean: float) -> None:
    background = colours.colour(mean, (0.0, 1.0), "max")
    ink = 0.0056 if colours.ink_on(background) == "#111111" else 1.0
    light = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in background]
    paper = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]
    brighter, darker = max(ink, paper), min(ink, paper)
    assert (brighter + 0.05) / (darker + 0.05) >= 4.3


def test_the_best_end_of_the_scale_is_bright_whichever_way_is_better() -> None:
    assert colours.colour(1.0, (0.0, 1.0), "max") == colours.colour(0.0, (0.0, 1.0), "min")
    assert colours.limits([0.5, 0.5])[0] < 0.5 < colours.limits([0.5, 0.5])[1]


def summary(mean: float, std: float | None) -> Summary:
    return Summary(mean=mean, std=std, n=3, low=None, high=None)


@pytest.mark.parametrize(
    ("metric", "mean", "std", "text"),
    [
        ("val_accuracy", 0.957, 0.0005, "95.70 ± 0.05"),
        ("val_accuracy", 0.957, 0.02, "95.7 ± 2.0"),
        ("val_loss", 0.31415, 0.012, "0.314 ± 0.012"),
        ("samples_per_s", 51234.0, 240.0, "51234 ± 240"),
        ("val_loss", 2e-9, 1e-10, "2e-09 ± 1e-10"),
        ("val_loss", 0.5, None, "0.500"),
        ("val_loss", 1.7e308, 1.2e308, "1.7e+308 ± 1.2e+308"),
        ("val_loss", 1e300, None, "1e+300"),
    ],
)
def test_values_have_the_decimals_that_their_spread_justifies(
    metric: str, mean: float, std: float | None, text: str
) -> None:
    assert unit_of(metric, [summary(mean, std)]).mean_and_std(summary(mean, std)) == text


def test_points_are_labelled_with_the_letters_of_the_paper() -> None:
    assert point_label({"sampling": "uniform", "rho": 0.1, "lambda": 1.0}) == "λ=1 ρ=0.1 sampling=uniform"
    assert [value_label(value) for value in (None, True, 10**6, 0.1 + 0.2)] == ["–", "true", "1000000", "0.3"]


def traces(page: str) -> list[dict[str, Any]]:
    start = page.index("[", page.rindex("Plotly.newPlot("))
    found, _ = json.JSONDecoder().raw_decode(page[start:])
    assert isinstance(found, list)
    return found


def a_profile(*values: Any, parameter: Any = None, metric: str = "val_accuracy") -> Profile:
    points = [{"rho": value} for value in values]
    found = results(points, [0.8 + number / 100 for number in range(len(values))])
    parameter = parameter or FloatParameter(low=0.001, high=10, log=True)
    return profile(found, metric=metric, mode="max", name="rho", parameter=parameter)


def test_a_profile_has_a_point_for_each_configuration_with_a_result() -> None:
    shown = a_profile(0.2, 0.1, 0.05)
    assert shown.values == [0.05, 0.1, 0.2]
    assert [point.number for point in shown.points] == [3, 2, 1]
    assert [point.is_best for point in shown.points] == [True, False, False]
    assert [point.objective.n for point in shown.points] == [2, 2, 2]
    waiting = aggregate([configuration(1, rho=0.1)], [trial(configuration(1, rho=0.1), 0, None, TrialState.RUNNING)])
    parameter = CategoricalParameter(choices=(0.1, 0.2))
    assert profile(waiting, metric="m", mode="min", name="rho", parameter=parameter).points == ()


@pytest.mark.parametrize("values", [(), (0.1,), (0.05, 0.1, 0.4), ("1/t", 0.5, "1-1/t"), (1e300, 1e-300)])
def test_a_profile_is_drawn_whatever_its_values_are(values: tuple[Any, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = profile_png(a_profile(*values), title="a study")
        page = profile_html(a_profile(*values), title="<a> study")
    assert size_of(png)[0] > 500
    assert "&lt;a&gt; study" in page
    (points,) = traces(page)
    assert len(points["x"]) == len(values)


def test_a_profile_has_the_scale_of_its_parameter() -> None:
    assert '"type":"log"' in profile_html(a_profile(0.01, 0.02, 0.3), title="")
    linear = FloatParameter(low=0, high=1)
    assert '"type":"log"' not in profile_html(a_profile(0.001, 0.01, 0.1, 1.0, parameter=linear), title="")


def test_a_profiles_values_are_in_its_unit() -> None:
    (points,) = traces(profile_html(a_profile(0.1, 0.2), title=""))
    assert points["y"] == pytest.approx([80.5, 81.5], abs=1)
