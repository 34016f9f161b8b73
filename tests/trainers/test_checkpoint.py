import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainers.checkpoint import DamagedCheckpointError, dumps, load, loads, previous, save

STATE = {"epochs_done": 3, "model": {"weight": torch.arange(5.0)}, "sampler": {"tau": 1.5}}


def names_beside(path: Path) -> list[str]:
    return sorted(item.name for item in path.parent.iterdir())


def test_a_state_comes_back_as_it_was() -> None:
    state = loads(dumps(STATE))
    assert torch.equal(state["model"].pop("weight"), torch.arange(5.0))
    assert state == {"epochs_done": 3, "model": {}, "sampler": {"tau": 1.5}}


def test_everything_that_a_run_is_made_of_comes_back_in_its_type() -> None:
    weights = torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last)
    state = {
        "tensors": [weights, weights.bfloat16(), torch.tensor(2**62), torch.tensor([True]), torch.zeros(0, 3)],
        "by_parameter": {0: {"momentum_buffer": None}, 1: {"step": torch.tensor(7.0)}},
        "settings": {"lr": 0.1, "betas": (0.9, 0.999), "lam": "1/t", "nesterov": False, "name": "ρ", "big": 2**80},
        "floats": [float("inf"), -0.0, 5e-324],
    }
    back = loads(dumps(state))
    for ours, theirs in zip(state["tensors"], back["tensors"], strict=True):
        assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
        assert torch.equal(ours, theirs)
    assert back["by_parameter"][1]["step"] == 7
    assert {**back, "tensors": [], "by_parameter": {}} == {**state, "tensors": [], "by_parameter": {}}
    assert str(back["floats"][1]) == "-0.0"


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
    ],
)
def test_a_generator_continues_where_its_state_was_taken(device: str) -> None:
    generator = torch.Generator(device).manual_seed(5)
    torch.randn(17, generator=generator, device=device)
    data = dumps({"generator": generator.get_state()})
    expected = torch.randn(17, generator=generator, device=device)
    restored = torch.Generator(device)
    restored.set_state(loads(data)["generator"])
    assert torch.equal(torch.randn(17, generator=restored, device=device), expected)


def test_a_checkpoint_cut_short_anywhere_or_made_longer_is_noticed() -> None:
    data = dumps(STATE)
    for size in range(len(data)):
        with pytest.raises(DamagedCheckpointError):
            loads(data[:size])
    for more in (b"\0", data):
        with pytest.raises(DamagedCheckpointError):
            loads(data + more)


def test_a_changed_bit_is_noticed_wherever_it_is() -> None:
    data = bytearray(dumps(STATE))
    for position in range(len(data)):
        data[position] ^= 1 << position % 8
        with pytest.raises(DamagedCheckpointError):
            loads(bytes(data))
        data[position] ^= 1 << position % 8
    assert loads(bytes(data))["epochs_done"] == 3


def test_a_part_of_zeros_is_noticed() -> None:
    """What some file systems leave of a file that was written while the power failed."""
    data = dumps(STATE)
    for start in range(0, len(data), 64):
        with pytest.raises(DamagedCheckpointError):
            loads(data[:start] + bytes(len(data) - start))


def test_a_checkpoint_of_another_format_version_is_named() -> None:
    data = dumps(STATE)
    with pytest.raises(DamagedCheckpointError, match="format must be 2, got 3"):
        loads(data[:8] + b"\0\3" + data[10:])


def test_nothing_but_plain_values_is_ever_built() -> None:
    with pytest.raises(Exception, match="Weights only load failed"):
        loads(dumps({"path": Path("/")}))


def test_a_file_is_replaced_whole_and_the_one_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run" / "state.ckpt"
    for epoch in (1, 2, 3):
        save({"epochs_done": epoch}, path)
    assert load(path) == {"epochs_done": 3}
    assert load(previous(path)) == {"epochs_done": 2}
    assert names_beside(path) == ["state.ckpt", "state.ckpt.previous"]


def test_a_state_that_cannot_be_saved_leaves_both_files_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    save({"epochs_done": 1}, path)
    save({"epochs_done": 2}, path)
    with pytest.raises(Exception, match="pickle"):
        save({"epochs_done": lambda: 3}, path)
    assert (load(path), load(previous(path))) == ({"epochs_done": 2}, {"epochs_done": 1})
    assert names_beside(path) == ["state.ckpt", "state.ckpt.previous"]


DAMAGES = {
    "emptied": lambda data: b"",
    "cut in the header": lambda data: data[:20],
    "cut in the content": lambda data: data[:-1],
    "a bit flipped": lambda data: data[:100] + bytes([data[100] ^ 4]) + data[101:],
    "something else": lambda data: b"something else",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_the_newest_file_is_damaged_the_one_before_is_used_with_a_warning(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.ckpt"
    for epoch in (1, 2, 3):
        save({"epochs_done": epoch}, path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert load(path) == {"epochs_done": 2}
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    assert "continuing with the one before, state.ckpt.previous" in record.getMessage()


def test_a_damaged_file_never_pushes_out_the_whole_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    for epoch in (1, 2, 3):
        save({"epochs_done": epoch}, path)
    path.write_bytes(path.read_bytes()[:-1])
    save({"epochs_done": 3}, path)
    assert (load(path), load(previous(path))) == ({"epochs_done": 3}, {"epochs_done": 2})


def test_where_both_are_damaged_both_are_named(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    save({"epochs_done": 1}, path)
    save({"epochs_done": 2}, path)
    path.write_bytes(b"something else")
    previous(path).write_bytes(previous(path).read_bytes()[:-1])
    with pytest.raises(DamagedCheckpointError) as caught:
        load(path)
    assert "state.ckpt: not a samstudy checkpoint (14 bytes)" in str(caught.value)
    assert "state.ckpt.previous: damaged checkpoint: the checksum" in str(caught.value)


def test_a_damaged_file_with_none_before_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    path.write_bytes(b"something else")
    with pytest.raises(DamagedCheckpointError, match=r"state\.ckpt: not a samstudy checkpoint \(14 bytes\)$"):
        load(path)


def test_a_removed_checkpoint_is_gone_and_the_one_before_it_goes_with_the_next_save(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    save({"run": "old", "epochs_done": 1}, path)
    save({"run": "old", "epochs_done": 2}, path)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        load(path)
    save({"run": "new", "epochs_done": 1}, path)
    assert names_beside(path) == ["state.ckpt"]


def test_without_hard_links_the_one_before_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "state.ckpt"
    for epoch in (1, 2, 3):
        save({"epochs_done": epoch}, path)
    assert (load(path), load(previous(path))) == ({"epochs_done": 3}, {"epochs_done": 2})
    assert names_beside(path) == ["state.ckpt", "state.ckpt.previous"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    others = [".state.ckpt~notes.txt", ".state.ckpt~", ".stateXckpt~abcd1234", ".other~abcd1234", "state.ckpt~abcd1234"]
    for name in (*others, ".state.ckpt~ab_d1234", ".state.ckpt~previous"):
        (tmp_path / name).write_text("left behind")
    save(STATE, path)
    assert names_beside(path) == sorted([*others, "state.ckpt"])


@pytest.mark.parametrize("has_hard_links", [True, False])
@pytest.mark.parametrize("replaced", [0, 1])
def test_an_interrupted_save_leaves_the_newest_and_the_one_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: int, has_hard_links: bool
) -> None:
    """replaced: how many files the save has put in their places when it is interrupted."""
    path = tmp_path / "state.ckpt"
    for epoch in (0, 1):
        save({"epochs_done": epoch}, path)
    with monkeypatch.context() as patch:
        if not has_hard_links:
            patch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(PermissionError()))
        replace, calls = Path.replace, iter([None] * replaced)

        def interrupted(self: Path, target: Path) -> Path:
            if next(calls, "interrupt") == "interrupt":
                patch.setattr(Path, "replace", replace)
                raise KeyboardInterrupt
            return replace(self, target)

        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save({"epochs_done": 2}, path)
    newest = 1 + replaced
    assert load(path) == {"epochs_done": newest}
    path.write_bytes(b"damaged")
    assert load(path)["epochs_done"] == (newest if not has_hard_links and not replaced else newest - 1)
    assert names_beside(path) == ["state.ckpt", "state.ckpt.previous"]


def test_the_longest_name_that_a_temporary_file_beside_it_can_have_is_long_enough(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 245)
    save({"epochs_done": 1}, path)
    save({"epochs_done": 2}, path)
    assert load(previous(path)) == {"epochs_done": 1}


CRASHES = """
import json, os, signal, sys, time
from pathlib import Path
import torch
from trainers.checkpoint import load, previous, save

torch.set_num_threads(1)
folder = Path(sys.argv[1])
SIZE = 100_000


def state(number):
    return {"number": number, "content": torch.full((SIZE,), float(number))}


def is_whole(loaded):
    return bool((loaded["content"] == float(loaded["number"])).all()) and len(loaded["content"]) == SIZE


def forked(work):
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return child


def die_before_operation(number, path):
    # Dies by SIGKILL just before the process's next file operations come to this number.
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event in ("open", "os.link", "os.rename", "os.remove", "os.listdir", "os.scandir"):
            count += 1
            if count > number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    save(state(3), path)


def at_every_operation():
    outcomes = []
    for number in range(100):
        path = folder / f"operation-{number}"
        save(state(1), path)
        save(state(2), path)
        _, status = os.waitpid(forked(lambda: die_before_operation(number, path)), 0)
        newest, before = load(path), load(previous(path))
        content = path.read_bytes()
        path.write_bytes(b"damaged")
        in_its_place = load(path)
        path.write_bytes(content)
        are_whole = is_whole(newest) and is_whole(before) and is_whole(in_its_place)
        outcomes.append([newest["number"], before["number"], in_its_place["number"], are_whole])
        save(state(4), path)  # the next process goes on
        left = sorted(item.name for item in folder.iterdir() if item.name.startswith(f".{path.name}~"))
        assert (load(path)["number"], left) == (4, []), (load(path)["number"], left)
        if os.WIFEXITED(status):
            return outcomes


def at_any_time(kills, pause):
    outcomes = []
    path = folder / "any-time"
    save(state(0), path)
    for kill in range(kills):
        reading, writing = os.pipe()

        def save_for_ever():
            number = 1000 * kill
            while True:
                number += 1
                save(state(number), path)
                os.write(writing, number.to_bytes(8, "big"))

        child = forked(save_for_ever)
        os.close(writing)
        os.read(reading, 8)
        time.sleep(pause * kill / kills)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        reported = b""
        while more := os.read(reading, 65536):
            reported += more
        os.close(reading)
        saved = int.from_bytes(reported[-8:], "big") if reported else 1000 * kill + 1
        loaded = load(path)
        outcomes.append([saved, loaded["number"], is_whole(loaded) and is_whole(load(previous(path)))])
    return outcomes


print(json.dumps({"operation": at_every_operation(), "time": at_any_time(25, 0.03)}))
"""


def test_whenever_a_process_is_killed_what_it_saved_last_can_be_loaded(tmp_path: Path) -> None:
    """By SIGKILL, before each file operation of a save in turn, and at any time in loops of saves."""
    done = subprocess.run(
        [sys.executable, "-c", CRASHES, str(tmp_path)], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert outcomes["operation"][0] == [2, 1, 1, True]
    assert outcomes["operation"][-1] == [3, 2, 2, True]
    assert len(outcomes["operation"]) > 5
    for newest, before, in_its_place, are_whole in outcomes["operation"]:
        assert are_whole
        assert (newest, before) in {(2, 1), (3, 1), (3, 2)}
        assert in_its_place == newest - 1, "where the newest is damaged as well, the one before it is used"
    assert len(outcomes["time"]) == 25
    for saved, loaded, are_whole in outcomes["time"]:
        assert are_whole
        assert saved <= loaded <= saved + 1
