"""Models and datasets of other packages: what they announce, and what is made of what they get wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.own_package import announce, python_path
from trainers import plugins
from trainers.datasets import (
    Dataset,
    DatasetUnavailableError,
    Normalisation,
    Split,
    load_dataset,
)
from trainers.datasets import (
    classification_dataset as dataset_of,
)
from trainers.datasets.announced import load_announced
from trainers.facts import DatasetFacts, ModelFacts
from trainers.models import build_model
from trainers.objective import Objective
from trainers.plugins import announced, load_code

MODEL = ModelFacts("net", "a network", ("classification",), code="lab.code:net")
DATA = DatasetFacts("blobs", "points", "classification", (3,), 2, 6, 2, code="lab.code:blobs")
IMAGES = DatasetFacts("dots", "images", "classification", (1, 4, 4), 2, 6, 2, code="lab.code:dots")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which packages are found."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "LEFT_OUT", [])
    monkeypatch.setattr(plugins, "PACKAGES", {})
    return tmp_path


def python(site: Path, *arguments: str) -> str:
    """What Python prints where the example is installed."""
    environment = {**os.environ, "PYTHONPATH": python_path(site), "OMP_NUM_THREADS": "1"}
    run = partial(subprocess.run, capture_output=True, text=True, timeout=120, check=True)
    return run([sys.executable, *arguments], env=environment).stdout


class TestExample:
    def test_its_model_learns_from_its_data(self, tmp_path: Path) -> None:
        settings = ("dataset=stripes", "model=two_layers", "epochs=3", "sampling=gradient_norm", "augmentation=crop")
        printed = python(tmp_path, "-m", "trainers", *settings)
        assert float(printed.rpartition("test_accuracy")[2].split()[0]) > 0.8, printed

    def test_its_announcement_imports_no_torch(self, tmp_path: Path) -> None:
        printed = python(
            tmp_path, "-c", "import sys; from trainers.catalog import MODELS; print(*MODELS, *sys.modules)"
        )
        assert ("two_layers" in printed.split(), "torch" in printed.split()) == (True, False)

    def test_no_batch_of_it_is_too_small_for_its_batch_normalisation(self, tmp_path: Path) -> None:
        program = (
            "from trainers.config import *\ntry: TrainConfig(dataset='stripes', model='two_layers', batch_size=599)\n"
        )
        printed = python(tmp_path, "-c", program + "except InvalidTrainConfigError as error: print(error)")
        assert printed.startswith("batch_size: batch_size must not leave a batch of one of 600 examples, got 599"), (
            printed
        )

    def test_its_announcement_can_be_imported_first(self, tmp_path: Path) -> None:
        program = "import my_lab.studies; from trainers.catalog import DATASETS; print(DATASETS['stripes'].code)"
        assert python(tmp_path, "-c", program) == "my_lab.data:stripes\n"


def test_what_is_announced_is_there_by_its_name(site: Path) -> None:
    (site / "lab.py").write_text(
        f"from trainers.facts import *\nNET = {MODEL!r}\n\nOTHER = {replace(MODEL, name='other')!r}"
    )
    announce(site, {"samstudy.models": {"other": "lab:OTHER", "net": "lab:NET"}})
    found = announced("samstudy.models", ModelFacts, taken=())
    assert list(found.items()) == [("net", MODEL), ("other", replace(MODEL, name="other"))]
    assert plugins.LEFT_OUT == []
    assert plugins.PACKAGES["lab.code:net"] == "lab 1.0"


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("'text'", "it must be a trainers.facts.ModelFacts, got 'text'"),
        (repr(DATA), "it must be a trainers.facts.ModelFacts"),
        (repr(replace(MODEL, name="mesh")), "its name must be that of its entry point, got 'mesh'"),
        (repr(replace(MODEL, code=None)), "its code must be 'module:function', got None"),
        (repr(replace(MODEL, code="lab.code")), "its code must be 'module:function', got 'lab.code'"),
        (repr(replace(MODEL, code="lab code:net")), "its code must be 'module:function', got 'lab code:net'"),
        (repr(replace(MODEL, code="lab [a:b]")), "its code must be 'module:function', got 'lab [a:b]'"),
        (repr(replace(MODEL, tasks=())), "its tasks must be ('classification',), got ()"),
        (repr(replace(MODEL, tasks=("classification", "binary"))), "its tasks must be ('classification',)"),
        ("ModelFacts('net', 'a network', (['classification'],), code='a:b')", "its tasks must be ('classification',)"),
        ("ModelFacts('net', None, ('classification',), code='a:b')", "its description must be text, got None"),
        (repr(replace(MODEL, min_image_size=0)), "its min_image_size must be an integer of at least 1, got 0"),
        (repr(replace(MODEL, single_example_image_size=0)), "its single_example_image_size must be an integer"),
        (repr(replace(MODEL, needs_images=1)), "its needs_images must be True or False, got 1"),  # type: ignore[arg-type]
        ("__import__('sys').exit('no licence')", "SystemExit: no licence"),
    ],
)
def test_a_model_that_is_not_sound_is_left_out_and_said(
    site: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], facts: str, said: str
) -> None:
    (site / "lab.py").write_text(f"from trainers.facts import *\nprint('from the lab')\nNET = {facts}")
    (site / "well.py").write_text(f"from trainers.facts import *\nWELL = {replace(MODEL, name='well')!r}")
    sys.modules.pop("lab", None)
    announce(site, {"samstudy.models": {"net": "lab:NET", "well": "well:WELL"}})
    assert list(announced("samstudy.models", ModelFacts, taken=())) == ["well"]
    (problem,) = plugins.LEFT_OUT
    assert problem.startswith(f"net (samstudy.models, lab:NET of lab 1.0): {said}")
    assert problem in caplog.text
    assert capsys.readouterr().out == "", "what modules print would be in the output of every command"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "regression"}, "its task must be 'classification'"),
        ({"is_problem": True}, "its task must be 'classification'"),
        ({"shape": (3, 3)}, "its shape must be (channels, height, width) or (features,), got (3, 3)"),
        ({"shape": (0,)}, "its shape must be"),
        ({"shape": [3]}, "its shape must be"),
        ({"classes": 1}, "its classes must be an integer of at least 2, got 1"),
        ({"train_size": True}, "its train_size must be an integer of at least 1, got True"),
        ({"validation_size": 0}, "its validation_size must be an integer of at least 1, got 0"),
    ],
)
def test_a_dataset_that_is_not_sound_is_left_out_and_said(site: Path, change: dict[str, object], said: str) -> None:
    (site / "lab.py").write_text(f"from trainers.facts import *\nBLOBS = {replace(DATA, **change)!r}")  # type: ignore[arg-type]
    sys.modules.pop("lab", None)
    announce(site, {"samstudy.datasets": {"blobs": "lab:BLOBS"}})
    assert announced("samstudy.datasets", DatasetFacts, taken=()) == {}
    assert plugins.LEFT_OUT[0].startswith(f"blobs (samstudy.datasets, lab:BLOBS of lab 1.0): {said}")


@pytest.mark.parametrize("name", ["two layers", "2net", "n" * 101, "a/b"])
def test_a_name_can_be_written_everywhere(site: Path, name: str) -> None:
    (site / "lab.py").write_text(f"from trainers.facts import *\nNET = {replace(MODEL, name=name)!r}")
    sys.modules.pop("lab", None)
    announce(site, {"samstudy.models": {name: "lab:NET"}})
    assert announced("samstudy.models", ModelFacts, taken=()) == {}
    assert "a name is a letter and then letters" in plugins.LEFT_OUT[0]


def test_names_are_taken_once(site: Path) -> None:
    (site / "lab.py").write_text(f"from trainers.facts import *\nMLP = {replace(MODEL, name='mlp')!r}\nNET = {MODEL!r}")
    sys.modules.pop("lab", None)
    announce(site, {"samstudy.models": {"mlp": "lab:MLP", "net": "lab:NET"}})
    announce(site, {"samstudy.models": {"net": "lab:NET"}}, name="other-lab")
    assert list(announced("samstudy.models", ModelFacts, taken={"mlp"})) == ["net"]
    assert [problem.endswith(": the name is taken") for problem in plugins.LEFT_OUT] == [True, True]


def vectors(size: int, *, classes: int = 2) -> Split:
    return Split(torch.zeros(size, 3), torch.arange(size) % classes)


def images(size: int) -> Split:
    return Split(torch.randint(256, (size, 1, 4, 4), dtype=torch.uint8), torch.arange(size) % 2)


NORMALISATION = Normalisation(torch.zeros(3), torch.ones(3))


class TestLoading:
    @pytest.fixture
    def answer(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
        """What the code of DATA and IMAGES answers, under "it"."""
        given: dict[str, object] = {}
        monkeypatch.setattr("trainers.datasets.announced.load_code", lambda code: lambda: given["it"])
        return given

    def test_what_is_as_announced_is_taken(self, answer: dict[str, object]) -> None:
        answer["it"] = dataset_of(vectors(6), vectors(2), vectors(5))
        assert load_announced("lab.code:blobs", DATA) is answer["it"]
        answer["it"] = dataset_of(images(6), images(2), images(1))
        assert load_announced("lab.code:dots", IMAGES) is answer["it"]

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (None, "lab.code:blobs must return a trainers.datasets.Dataset, got <class 'NoneType'>"),
            (dataset_of(vectors(5), vectors(2), vectors(2)), "training split must have 6 examples, got 5 inputs"),
            (dataset_of(vectors(6), vectors(3), vectors(2)), "validation split must have 2 examples, got 3"),
            (dataset_of(vectors(6), vectors(2), vectors(0)), "test split must have one or more examples"),
            (dataset_of(images(6), images(2), images(2)), "inputs of shape (3,), got (1, 4, 4)"),
            (
                Dataset(vectors(6), vectors(2), vectors(2), Objective("classification"), NORMALISATION),
                "images, and nothing else, have a normalisation",
            ),
            (
                dataset_of(Split(torch.full((6, 3), torch.nan), torch.zeros(6).long()), vectors(2), vectors(2)),
                "finite inputs that require no gradient",
            ),
            (
                dataset_of(vectors(6), vectors(2), Split(np.zeros((2, 3)), np.zeros(2))),  # type: ignore[arg-type]
                "test split must have inputs and targets that are tensors, got <class 'numpy.ndarray'>",
            ),
            (dataset_of(vectors(6, classes=3), vectors(2), vectors(2)), "targets from 0 to 1, got 0 to 2"),
            (
                dataset_of(Split(torch.zeros(6, 4), torch.zeros(6).long()), vectors(2), vectors(2)),
                "training split must have inputs of shape (3,), got (4,)",
            ),
            (
                dataset_of(Split(torch.zeros(6, 3).double(), torch.zeros(6).long()), vectors(2), vectors(2)),
                "inputs of torch.float32, got torch.float64",
            ),
            (
                dataset_of(Split(torch.zeros(6, 3), torch.zeros(6)), vectors(2), vectors(2)),
                "targets (n,) of torch.int64, got 1 dimensions of torch.float32",
            ),
            (Dataset(vectors(6), None, vectors(2), Objective("classification")), "it has no validation split"),
            (Dataset(vectors(6), vectors(2), vectors(2), Objective("regression")), "its task must be classification"),
        ],
    )
    def test_what_is_not_as_announced_is_not_trained_on(
        self, answer: dict[str, object], given: object, said: str
    ) -> None:
        answer["it"] = given
        with pytest.raises(DatasetUnavailableError) as caught:
            load_announced("lab.code:blobs", DATA)
        assert said in str(caught.value)


def test_code_that_is_not_there_is_an_error_that_names_it() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_lab"):
        load_code("no_such_lab.code:net")


class TestBuilding:
    @pytest.fixture
    def build(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], nn.Module]:
        """Builds what the code of MODEL answers."""

        def build(model: object) -> nn.Module:
            monkeypatch.setattr("trainers.models.MODELS", {"net": MODEL})
            monkeypatch.setattr("trainers.models.announced.load_code", lambda code: lambda dataset: model)
            return build_model("net", DATA, seed=0)

        return build

    def test_a_model_is_answered_ready_to_train(self, build: Callable[[object], nn.Module]) -> None:
        model = nn.Sequential(nn.LazyLinear(4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)).eval().double()
        assert build(model) is model
        assert all(module.training for module in model.modules())
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert model[1].num_batches_tracked == 0, "it was tried without learning anything from it"

    @pytest.mark.parametrize(
        ("model", "said"),
        [
            (nn.Linear, "lab.code:net must return a torch.nn.Module, got <class 'type'>"),
            (nn.Linear(3, 5), r"must answer 2 inputs with logits of shape \(2, 2\), got \(2, 5\)"),
            (nn.LSTM(3, 2), r"logits of shape \(2, 2\), got <class 'tuple'>"),
            (nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2)), "must not write into its inputs"),
            (nn.Sequential(nn.Linear(3, 2).requires_grad_(False)), "has no parameters to train"),
        ],
    )
    def test_a_model_that_cannot_be_trained_is_said_so(
        self, build: Callable[[object], nn.Module], model: object, said: str
    ) -> None:
        with pytest.raises((TypeError, ValueError), match=said):
            build(model)


def test_a_dataset_is_held_against_its_announcement_wherever_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.datasets.DATASETS", {"blobs of a test": DATA})
    monkeypatch.setattr("trainers.datasets.announced.load_code", lambda code: lambda: None)
    with pytest.raises(DatasetUnavailableError, match=r"lab.code:blobs must return a trainers.datasets.Dataset"):
        load_dataset("blobs of a test")


def test_what_draws_at_random_draws_from_the_runs_own_stream(tmp_path: Path) -> None:
    """samstudy knows its own layers that draw, and of another package's model that it may."""
    (tmp_path / "lab_net.py").write_text(
        "from torch import nn\nfrom torch.nn.functional import dropout\nfrom trainers.facts import ModelFacts\n"
        "class Net(nn.Linear):\n    def forward(self, x):\n"
        "        return super().forward(dropout(x.flatten(1), 0.5, self.training))\n"
        "def net(dataset): return Net(64, 3)\n"
    )
    (tmp_path / "lab_facts.py").write_text(
        "from trainers.facts import ModelFacts\nNET = ModelFacts('net', '', ('classification',), code='lab_net:net')\n"
    )
    announce(tmp_path, {"samstudy.models": {"net": "lab_facts:NET"}})
    program = """
import torch
from trainers.config import TrainConfig
from trainers.loop import Training
def metrics(result): return {k: v for k, v in result.metrics.items() if k != "samples_per_s"}
def run(): return Training(TrainConfig(dataset="stripes", model="net", epochs=3, landscape="none"))
whole = run(); expected = [metrics(whole.next_result()) for _ in range(3)]
torch.rand(7)
first = run(); seen = [metrics(first.next_result())]
second = run(); second.load_state_dict(first.state_dict())
seen += [metrics(second.next_result()) for _ in range(2)]
print(seen == expected)
"""
    assert python(tmp_path, "-c", program) == "True\n"
