import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainers.__main__ import main, parse_config
from trainers.checkpoint import previous
from trainers.config import InvalidTrainConfigError, TrainConfig, defaults, knobs
from trainers.metrics import LANDSCAPE, reported_metrics

QUICK = ["epochs=2", "batch_size=128", "--threads", "1"]


def test_settings_are_read_by_the_kind_of_their_knob() -> None:
    config = parse_config(["lambda=0.5", "rho=1", "epochs=7", "dataset=ridge", "model=linear", "lr=1e-3"])
    assert config == TrainConfig(lam=0.5, rho=1.0, epochs=7, dataset="ridge", model="linear", lr=0.001)
    assert parse_config(["lambda=1-1/t"]).lam == "1-1/t"
    assert parse_config([]) == TrainConfig()


def test_every_bad_setting_is_reported_at_once() -> None:
    settings = ["lambda=2", "rho", "epochs=1.5", "epochs=2", "model=big", "colour=red", "lr=fast", "momentum=nan"]
    with pytest.raises(InvalidTrainConfigError) as caught:
        parse_config(settings)
    assert sorted(problem.field for problem in caught.value.problems) == sorted(
        ["lambda", "rho", "epochs", "epochs", "model", "colour", "lr", "momentum"]
    )


def test_json_is_one_object_per_epoch_with_every_metric(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset=digits", "lambda=0.5", "sampling=lipschitz", *QUICK, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert set(lines[-1]) == {"epoch", *reported_metrics(defaults())}
    assert "test_loss" not in lines[0]


def test_the_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(QUICK) == 0
    header, first, second, *test = capsys.readouterr().out.splitlines()
    assert header.split()[:2] == ["epoch", "train_loss"]
    assert len(header) == len(first) == len(second)
    at_the_end = {*LANDSCAPE, "test_loss", "test_accuracy", "test_calibration_error"}
    assert {line.split()[0] for line in test} == at_the_end


def test_bad_input_is_named_on_stderr_and_exits_with_2() -> None:
    """And takes no time: torch is not imported."""
    command = [sys.executable, "-X", "importtime", "-m", "trainers", "lambda=2", "rho=-1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "lambda: must be a number in [0, 1] or one of '1/t', '1-1/t', got 2.0" in done.stderr
    assert "rho: must be a number of at least 0 or 'theory', got -1.0" in done.stderr
    assert "Traceback" not in done.stderr
    assert "| torch" not in done.stderr


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("epochs=" + 400 * "9", "epochs: must be an integer in [1, 100000], got an integer of 1329 bits"),
        ("epochs=" + 5000 * "9", "epochs: must be an integer in [1, 100000], got '999"),
        ("batch_size=" + 400 * "9", "batch_size: must be at most 1149"),
        ("batch_size=0", "batch_size: must be an integer of at least 1, got 0"),
        ("seed=-1", "seed: must be an integer in [0, 4294967295], got -1"),
        ("lr=1e300", "lr: must be at most 1e+30"),
        ("lr=1e999", "lr: must be finite, got inf"),
        ("rho=nan", "rho: must be finite, got nan"),
        ("weight_decay=-1e-9", "weight_decay: must be a number of at least 0"),
        ("lambda=", "lambda: must be a number in [0, 1] or one of '1/t', '1-1/t', got ''"),
        ("lam=0.5", "lam: unknown field"),
        ("=3", "=3: settings are written key=value"),
        ("=", "=: settings are written key=value"),
        ("", "'': settings are written key=value"),
        ("model=\udcff", "model: must be one of"),
    ],
)
def test_a_bad_setting_is_answered_with_its_rule(setting: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([setting]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("text", ["abc", "0", "-1", "1.5", "", 400 * "9"])
def test_bad_threads_are_answered_with_their_rule(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([f"--threads={text}"])
    assert caught.value.code == 2
    assert f"argument --threads: must be an integer in [1, 1024], got '{text}'" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_kept_is_refused_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for path, words in (
        (tmp_path, "must be a file"),
        (Path("/dev/zero"), "must be a file"),
        (tmp_path / "file" / "run.ckpt", "cannot keep a file at"),
        (Path("/proc/x/y"), "cannot keep a file at"),
        (tmp_path / ("x" * 250), "cannot keep a file at"),
        (tmp_path / ("x" * 300), "cannot keep a file at"),
    ):
        assert main([*QUICK, "--checkpoint", str(path)]) == 2
        output = capsys.readouterr()
        assert f"--checkpoint: {words}" in output.err
        assert output.out == ""
    assert main([*QUICK, "--checkpoint", str(tmp_path / "new" / "run.ckpt")]) == 0


def test_a_checkpoint_of_another_kind_of_device_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trainers import checkpoint

    path = tmp_path / "run.ckpt"
    assert main([*QUICK, "--checkpoint", str(path)]) == 0
    state = checkpoint.load(str(path))
    checkpoint.save({**state, "training": {**state["training"], "device": "cuda"}}, path)
    assert main([*QUICK, "--checkpoint", str(path)]) == 2
    assert "the state is of a run on 'cuda', and this one is on 'cpu'" in capsys.readouterr().err


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trainers import checkpoint

    checkpoint.save({"model": {}}, tmp_path / "other")
    assert main([*QUICK, "--checkpoint", str(tmp_path / "other")]) == 2
    said = capsys.readouterr().err
    assert "is of another configuration: dataset is None there and 'digits' here; model is" in said
    assert "others" in said


def test_a_reader_that_has_seen_enough_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        settings = ["dataset=ridge", "model=linear", "epochs=2"]
        command = [sys.executable, "-m", "trainers", *settings, "--threads=1", "--json"]
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == ""


def test_an_example_that_would_never_be_drawn_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 4,096 examples on two features, which differ a millionfold, some are tiny."""
    problem = ["dataset=ridge", "model=linear", "n_samples=4096", "n_features=2", "condition_number=1e6"]
    settings = [*problem, "regulariser=0", "sampling=lipschitz", "epochs=1", "landscape=none"]
    assert main(settings) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "uniform_share: every probability must be at least 1e-12" in said.err
    assert main([*settings, "uniform_share=0.1"]) == 0


def test_help_lists_every_setting_and_imports_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "trainers", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for name, knob in knobs().items():
        assert f"  {name} " in done.stdout
        assert knob.description in done.stdout
    assert "argparse" in done.stderr
    assert not [line for line in done.stderr.splitlines() if line.split("|")[-1].strip() in {"torch", "numpy"}]


def test_divergence_exits_with_1_and_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset=ridge", "model=linear", "lr=1000000", "batch_size=10", "epochs=3", "--threads", "1"]) == 1
    assert "training diverged" in capsys.readouterr().err


def without_speed(lines: str) -> list[dict[str, float]]:
    return [
        {name: value for name, value in json.loads(line).items() if name != "samples_per_s"}
        for line in lines.splitlines()
    ]


@pytest.mark.parametrize("saved", [True, False])
def test_a_checkpoint_continues_where_the_run_was_cut_and_no_line_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    from trainers import checkpoint

    path = tmp_path / "run.ckpt"
    command = ["epochs=3", "--threads", "1", "--json"]
    assert main(command) == 0
    whole = without_speed(capsys.readouterr().out)

    def cut(state: dict[str, object], to: Path, save: object = checkpoint.save) -> None:
        if saved:
            save(state, to)  # type: ignore[operator]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", cut)
        with pytest.raises(KeyboardInterrupt):
            main([*command, "--checkpoint", str(path)])
    assert main([*command, "--checkpoint", str(path)]) == 0
    assert without_speed(capsys.readouterr().out) == (whole if saved else whole[:1] + whole)


def test_a_checkpoint_of_another_configuration_or_a_damaged_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.ckpt"
    assert main([*QUICK, "--checkpoint", str(path)]) == 0
    assert main([*QUICK, "lr=0.2", "--checkpoint", str(path)]) == 2
    assert "is of another configuration: lr is 0.1 there and 0.2 here\n" in capsys.readouterr().err
    assert main([*QUICK, "--checkpoint", str(path)]) == 0
    assert "epochs are done" in capsys.readouterr().err
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert main([*QUICK, "--checkpoint", str(path)]) == 0, "the one before is whole"
    for file in (path, previous(path)):
        file.write_bytes(whole[:-1])
    capsys.readouterr()
    assert main([*QUICK, "--checkpoint", str(path)]) == 1
    assert "damaged checkpoint" in capsys.readouterr().err
