from pathlib import Path

import pytest
import torch

from trainers import checkpoint
from trainers.checkpoint import DamagedCheckpointError

STATE = {"epochs_done": 3, "model": {"weight": torch.arange(5.0)}, "sampler": {"tau": 1.5}}


def test_a_state_comes_back_as_it_was() -> None:
    state = checkpoint.loads(checkpoint.dumps(STATE))
    assert torch.equal(state["model"].pop("weight"), torch.arange(5.0))
    assert state == {"epochs_done": 3, "model": {}, "sampler": {"tau": 1.5}}


@pytest.mark.parametrize("position", [0, 9, 20, 60, -1])
def test_a_changed_byte_is_noticed_wherever_it_is(position: int) -> None:
    data = bytearray(checkpoint.dumps(STATE))
    data[position] ^= 1
    with pytest.raises(DamagedCheckpointError):
        checkpoint.loads(bytes(data))


@pytest.mark.parametrize("size", [0, 5, 41, 42, 100, -1])
def test_a_checkpoint_cut_short_is_noticed(size: int) -> None:
    with pytest.raises(DamagedCheckpointError):
        checkpoint.loads(checkpoint.dumps(STATE)[:size])


def test_a_file_is_replaced_whole_and_nothing_else_is_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "run" / "state.ckpt"
    checkpoint.save({"epochs_done": 1}, path)
    checkpoint.save({"epochs_done": 2}, path)
    assert checkpoint.load(path) == {"epochs_done": 2}
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save({"epochs_done": lambda: 3}, path)
    assert checkpoint.load(path) == {"epochs_done": 2}
    assert [item.name for item in path.parent.iterdir()] == ["state.ckpt"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.ckpt"
    path.write_bytes(b"something else")
    with pytest.raises(DamagedCheckpointError, match=r"state\.ckpt: not a samstudy checkpoint \(14 bytes\)"):
        checkpoint.load(path)
