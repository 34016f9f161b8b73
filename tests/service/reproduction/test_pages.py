"""Pages: what was run can be run again from them, and they hide no failure."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from service.reproduction import ExperimentName, Scale, pages
from service.reproduction.catalog import experiment
from service.reproduction.experiment import Report
from service.reproduction.markdown import listed, number, signed
from service.reproduction.provenance import Provenance, of_another_machine, of_this_machine
from service.reproduction.sources import short, sources_digest
from service.spec import parse_spec
from tests.service.reproduction.made_up import made_up

SOMEWHERE = Provenance("a machine", {"Python": "3.11", "torch": "2.13"})


def page(name: ExperimentName, scale: Scale = Scale.SMALL, *, fails: bool = False) -> str:
    of = experiment(name, scale)
    results = {
        part: made_up(spec, lambda *_: {}, epochs=range(20, 41, 20), failed=lambda _point, seed: fails and seed == 0)
        for part, spec in of.studies.items()
    }
    report = Report("what was found", {})
    return pages.page(of, report, results, command=f"samstudy reproduce {name}", provenance=SOMEWHERE)


@pytest.mark.parametrize("name", list(ExperimentName))
@pytest.mark.parametrize("scale", list(Scale))
def test_the_specs_on_a_page_are_those_that_were_run(name: ExperimentName, scale: Scale) -> None:
    texts = re.findall(r"```yaml\n(.*?)```", page(name, scale), re.DOTALL)
    assert [parse_spec(yaml.safe_load(text)) for text in texts] == list(experiment(name, scale).studies.values())


def test_a_page_says_how_when_how_long_and_on_what() -> None:
    text = page(ExperimentName.IMPORTANCE)
    assert "`samstudy reproduce figure-importance`" in text
    assert "2026-01-02" in text
    assert "5 min (30 trials, 15 min of training)" in text
    assert "a machine" in text
    assert "Python 3.11, torch 2.13" in text
    assert "did not succeed" not in text


def test_a_page_says_which_trials_are_missing() -> None:
    text = page(ExperimentName.CONSTANT_VS_DECREASING, fails=True)
    assert "Trials that did not succeed" in text
    assert "3 of “constant” and 3 of “decreasing”" in text


@pytest.mark.parametrize("name", list(ExperimentName))
@pytest.mark.parametrize("scale", list(Scale))
def test_a_page_says_before_anything_else_how_much_of_the_published_setting_it_is(
    name: ExperimentName, scale: Scale
) -> None:
    head = " ".join(page(name, scale).partition("## What came out")[0].split())
    extent = experiment(name, scale).extent
    assert f"**How much of the published setting this is**: {extent}. It took 5 min." in head


def test_the_index_links_what_is_there_with_its_time_and_names_what_is_not() -> None:
    timed = page(ExperimentName.IMPORTANCE)
    text = pages.index({"figure-importance": timed, "table-lambda-rho-paper": "", "table-lambda-rho": "no time"})
    assert "| [figure-importance](figure-importance.md), 5 min |" in text
    links = "[table-lambda-rho](table-lambda-rho.md) · [table-lambda-rho-paper](table-lambda-rho-paper.md)"
    assert f"| {links} |" in text
    assert text.count("not run yet") == 2


def test_the_index_says_what_each_experiment_leaves_out_at_small_scale() -> None:
    text = pages.index({})
    for name in ExperimentName:
        assert f"| {experiment(name, Scale.SMALL).extent} |" in text


def test_only_pages_of_experiments_are_looked_at(tmp_path: Path) -> None:
    for name in ("figure-importance.md", "table-lambda-rho-paper.md", "other.md", "figure-importance.html"):
        (tmp_path / name).write_text(name)
    assert pages.pages_in(tmp_path) == {
        "figure-importance": "figure-importance.md",
        "table-lambda-rho-paper": "table-lambda-rho-paper.md",
    }


def test_the_documentation_has_the_index_of_its_own_folder() -> None:
    folder = Path(__file__).parents[3] / "docs" / "reproduction"
    assert (folder / pages.INDEX).read_text() == pages.index(pages.pages_in(folder))


def test_the_readme_says_what_each_experiment_leaves_out() -> None:
    text = (Path(__file__).parents[3] / "README.md").read_text()
    for name in ExperimentName:
        assert f"| {experiment(name, Scale.SMALL).extent} |" in text


def test_this_machine_is_described_without_its_name() -> None:
    here = of_this_machine()
    assert "core" in here.machine
    assert {"Python", "samstudy", "torch", "ray"} <= here.versions.keys()
    assert "unknown" in of_another_machine().machine


def test_the_sources_of_what_trains_are_told_with_the_versions() -> None:
    told = f"(sources {short(sources_digest())})"
    assert told in of_this_machine().versions["samstudy"]
    assert told in of_another_machine().versions["samstudy"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.2904, "0.29"),
        (2.4e-4, "2.4e-4"),
        (1062.0, "1,062"),
        (0.0, "0"),
        (12.3, "12"),
        (99.7, "100"),
        (9.96, "10"),
        (1e-22, "1.0e-22"),
        (5e5, "5.0e5"),
    ],
)
def test_numbers_have_two_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_differences_have_a_sign() -> None:
    assert [signed(value) for value in (2.4e-4, -2.4e-4, 0.0)] == ["+2.4e-4", "−2.4e-4", "0"]


def test_parts_are_listed() -> None:
    assert [listed(list(parts)) for parts in ("a", "ab", "abc")] == ["a", "a and b", "a, b and c"]
