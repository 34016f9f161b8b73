"""Configurations over two parameters."""

from __future__ import annotations

import pytest

from service.analysis.aggregation import aggregate, summarise
from service.analysis.surface import (
    NO_PANELS,
    Surface,
    best_words,
    in_order_of_interest,
    of_another_metric,
    surface,
    tie_words,
)
from service.study import Purpose, TrialState
from tests.service.analysis.records import configuration, grid, results, trial


def test_numbers_ascend_and_words_follow_as_in_the_paper() -> None:
    points = grid()
    shown = surface(results(points, [0.5] * len(points)), metric="m", mode="max")
    assert shown.x_values == [0.0, 0.5, 1.0, "1/t", "1-1/t"]
    assert shown.y_values == [0.1, 0.2]


def test_each_configuration_lies_in_its_cell() -> None:
    points = grid()
    shown = surface(results(points, [number / 100 for number in range(10)]), metric="m", mode="max")
    (panel,) = shown.panels
    assert (panel.label, shown.panel, len(panel.cells)) == (None, None, 10)
    cell = panel.cell("1/t", 0.1)  # the sixth point
    assert cell is not None
    assert cell.number == 6
    assert cell.value is not None
    assert cell.value.mean == pytest.approx(0.055)
    assert panel.cell("1/t", 0.3) is None


def test_the_best_is_the_cell_of_the_best_configuration() -> None:
    points = grid()
    values = [number / 100 for number in range(10)]
    highest, lowest = (surface(results(points, values), metric="m", mode=mode).best for mode in ("max", "min"))
    assert highest is not None
    assert lowest is not None
    assert (highest.x, highest.y, lowest.x, lowest.y) == (0.0, 0.1, "1-1/t", 0.2)


def test_sampling_makes_panels_where_it_varies() -> None:
    points = grid(sampling=["uniform", "lipschitz", "gradient_norm"], device=["cpu", "cuda"])
    shown = surface(results(points, [0.5] * len(points)), metric="m", mode="max")
    assert shown.panel == "sampling"
    assert [panel.label for panel in shown.panels] == ["uniform", "lipschitz", "gradient_norm"]


def test_without_sampling_the_choice_with_the_fewest_values_makes_panels() -> None:
    points = grid(optimizer=["sgd", "adam", "adamw"], model=["mlp", "linear"])
    assert surface(results(points, [0.5] * len(points)), metric="m", mode="max").panel == "model"


def test_numbers_make_panels_where_they_come_back_and_not_where_they_were_drawn() -> None:
    points = grid(batch_size=[32, 64])
    assert surface(results(points, [0.5] * len(points)), metric="m", mode="max").panel == "batch_size"
    drawn = [{"lambda": 0.1 * number, "rho": 0.1, "lr": 0.01 * number} for number in range(1, 5)]
    assert surface(results(drawn, [0.5] * 4), metric="m", mode="max").panel is None


def test_a_panel_can_be_chosen_and_panels_can_be_refused() -> None:
    points = grid(sampling=["uniform", "lipschitz"], model=["mlp", "linear"])
    known = results(points, [0.5] * len(points))
    assert [panel.label for panel in surface(known, metric="m", mode="max", panel="model").panels] == [
        "mlp",
        "linear",
    ]
    assert len(surface(known, metric="m", mode="max", panel=NO_PANELS).panels) == 1


def test_a_crowded_cell_shows_its_best_and_says_how_many_there_are() -> None:
    points = [{"lambda": 0.5, "rho": 0.1, "lr": lr} for lr in (0.1, 0.2, 0.3)]
    for mode, number in (("max", 2), ("min", 3)):
        (cell,) = surface(results(points, [0.5, 0.9, 0.1]), metric="m", mode=mode).panels[0].cells  # type: ignore[arg-type]
        assert (cell.number, cell.configurations) == (number, 3)


def test_a_crowded_cell_shows_a_complete_configuration_before_a_better_incomplete_one() -> None:
    first, second = configuration(1, rho=0.1, lr=0.1, **{"lambda": 0.5}), configuration(2, rho=0.1, **{"lambda": 0.5})
    trials = [trial(first, 0, 0.9), trial(first, 1, None, TrialState.FAILED), trial(second, 0, 0.2)]
    (cell,) = surface(aggregate([first, second], trials), metric="m", mode="max").panels[0].cells
    assert cell.number == 2


def test_a_crowded_cell_shows_the_best_of_the_study_however_that_was_chosen() -> None:
    """By the most seeds where early stopping has left none complete, and by the means on fresh seeds."""
    early, fuller = (configuration(number, **{"lambda": 0.0, "rho": 0.1, "lr": number / 7}) for number in (1, 2))
    stopped = [trial(early, 0, 0.99), trial(early, 1, None, TrialState.EARLY_STOPPED)]
    stopped += [trial(fuller, 0, 0.97), trial(fuller, 1, 0.96), trial(fuller, 2, None, TrialState.EARLY_STOPPED)]
    whole = [trial(early, 0, 0.99), trial(fuller, 0, 0.97)]
    whole += [trial(one, 10, value, purpose=Purpose.CONFIRM) for one, value in ((early, 0.80), (fuller, 0.95))]
    for trials in (stopped, whole):
        shown = surface(aggregate([early, fuller], trials), metric="m", mode="max")
        (cell,) = shown.panels[0].cells
        assert (cell.number, cell.configurations) == (2, 2)
        assert shown.best == cell


def test_a_configuration_without_results_is_there_with_an_empty_cell() -> None:
    of = configuration(1, rho=0.1, **{"lambda": 0.5})
    shown = surface(aggregate([of], [trial(of, 0, None, TrialState.RUNNING)]), metric="m", mode="max")
    (cell,) = shown.panels[0].cells
    assert (cell.value, cell.complete, shown.best) == (None, False, None)


def test_configurations_without_both_parameters_are_counted_and_left_out() -> None:
    shown = surface(results([{"lambda": 0.5, "rho": 0.1}, {"lambda": 0.5}], [0.5, 0.9]), metric="m", mode="max")
    assert shown.left_out == 1
    assert len(shown.panels[0].cells) == 1


def test_an_inactive_panel_parameter_gets_the_last_panel() -> None:
    points = [{"lambda": 0.5, "rho": 0.1}, *({"lambda": 0.5, "rho": 0.1, "kind": kind} for kind in ("b", "a"))]
    labels = [panel.label for panel in surface(results(points, [0.1, 0.2, 0.3]), metric="m", mode="max").panels]
    assert labels == ["a", "b", None]


def test_one_and_one_point_zero_share_a_cell_and_true_does_not() -> None:
    points = [{"lambda": value, "rho": 0.1} for value in (1, 1.0, True)]
    shown = surface(results(points, [0.1, 0.2, 0.3]), metric="m", mode="max")
    assert shown.x_values == [1, True]
    assert [cell.configurations for cell in shown.panels[0].cells] == [2, 1]


def test_a_surface_of_nothing_is_empty() -> None:
    shown = surface([], metric="m", mode="max")
    assert (shown.panels, shown.x_values, shown.best) == ([], [], None)


def test_a_surface_goes_through_json_unchanged() -> None:
    points = grid(sampling=["uniform", "lipschitz"])
    shown = surface(results(points, [number / 50 for number in range(20)]), metric="m", mode="max")
    assert Surface.model_validate_json(shown.model_dump_json()) == shown


@pytest.mark.parametrize(
    ("parameters", "in_order"),
    [
        (["sampling", "rho", "lambda"], ["lambda", "rho", "sampling"]),
        (["lr", "rho"], ["rho", "lr"]),
        (["lr", "momentum", "epochs"], ["lr", "momentum", "epochs"]),
        (["lambda"], ["lambda"]),
    ],
)
def test_lambda_and_rho_come_first(parameters: list[str], in_order: list[str]) -> None:
    assert in_order_of_interest(parameters) == in_order


def test_another_metric_lies_where_the_objective_does() -> None:
    points = grid()
    shown = surface(results(points, [number / 100 for number in range(10)]), mode="max", metric="val_accuracy")
    assert shown.best is not None
    best, other = shown.best, shown.panels[0].cells[1]
    search = {best.configuration_id: [3.0, 5.0], other.configuration_id: [7.0]}
    found = of_another_metric(shown, "sharpness_one_step", search=search, confirming={best.configuration_id: [4.5]})
    assert (found.metric, found.mode) == ("sharpness_one_step", None)
    assert found.best is not None
    assert (found.best.configuration_id, found.best.value, found.best.confirmed) == (
        best.configuration_id,
        summarise([3.0, 5.0]),
        summarise([4.5]),
    )
    cells = {cell.configuration_id: cell for cell in found.panels[0].cells}
    assert cells[best.configuration_id] == found.best
    assert (cells[best.configuration_id].complete, cells[other.configuration_id].complete) == (True, False)
    assert cells[other.configuration_id].value == summarise([7.0])
    assert [cell.value for cell in cells.values()].count(None) == 8
    assert (best_words(shown), best_words(found)) == ("best", "best objective on fresh seeds")


def said(shown: Surface) -> str:
    return best_words(shown) + tie_words(shown)


def test_means_as_good_as_the_best_are_counted() -> None:
    values = [0.5, 0.9, 0.9, 0.3, 0.9, 0.1, 0.2, 0.3, 0.4, 0.0]
    shown = surface(results(grid(), values), mode="max", metric="val_accuracy")
    assert said(shown) == "best, with the same mean as 2 other cells"
    by_loss = surface(results(grid(), [*values[:-1], 0.1]), mode="min", metric="val_loss")
    assert said(by_loss) == "best, with the same mean as 1 other cell"
    least = of_another_metric(by_loss, "sharpness_one_step", search={}, confirming={})
    assert said(least) == "best objective"
    assert said(surface([], mode="max", metric="val_accuracy")) == "best"


def test_a_mean_of_other_worth_is_not_the_same() -> None:
    points = [configuration(number, **{"lambda": number / 10, "rho": 0.1}) for number in range(1, 4)]
    trials = [
        *(trial(points[0], seed, 0.9) for seed in (0, 1)),
        *(trial(points[1], seed, 0.9) for seed in (0, 1)),
        trial(points[2], 0, 0.9),
        trial(points[2], 1, None, state=TrialState.FAILED),
    ]
    found = aggregate(points, trials)
    assert said(surface(found, mode="max", metric="m")) == "best, with the same mean as 1 other cell"
    fresh = zip(points, (0.8, 0.7, 0.8), strict=True)
    confirming = [trial(point, 7, value, purpose=Purpose.CONFIRM) for point, value in fresh]
    confirmed = surface(aggregate(points, [*trials, *confirming]), mode="max", metric="m")
    assert said(confirmed) == "best on fresh seeds, with the same mean as 1 other cell"
