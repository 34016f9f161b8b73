"""Checkpoints: a training state as bytes that notice damage, and as a file that always has a whole one behind it.

Format: 8 bytes of magic, 2 bytes of format version, the SHA-256 of what follows, then torch's own serialisation.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

_MAGIC = b"SAMSTUDY"
_VERSION = 2
_HEADER_SIZE = len(_MAGIC) + 2 + hashlib.sha256().digest_size


class DamagedCheckpointError(ValueError):
    """Bytes that are no checkpoint, or one that was cut short or changed."""


def dumps(state: dict[str, Any]) -> bytes:
    """The state, of tensors, numbers, strings and containers of these, as bytes."""
    buffer = io.BytesIO(bytes(_HEADER_SIZE))
    buffer.seek(_HEADER_SIZE)
    torch.save(state, buffer)
    with buffer.getbuffer() as view:
        view[:_HEADER_SIZE] = _header(view[_HEADER_SIZE:])
    return buffer.getvalue()


def loads(data: bytes) -> dict[str, Any]:
    """The state that `dumps` wrote, its tensors on the CPU.

    Nothing but tensors and plain values is ever built. Raises DamagedCheckpointError.
    """
    _check(data)
    payload = io.BytesIO(memoryview(data)[_HEADER_SIZE:])
    state: dict[str, Any] = torch.load(payload, map_location="cpu", weights_only=True)
    return state


def previous(path: Path) -> Path:
    """Where `save` keeps the checkpoint before the one at `path`."""
    return path.with_name(f"{path.name}.previous")


def save(state: dict[str, Any], path: Path) -> None:
    """Writes the state to `path`, and keeps the checkpoint that was there, if it is whole, at `previous(path)`.

    A reader of either path sees a whole file, the old or the new one, at every moment, and what was saved last can be
    loaded wherever the process or the machine is cut. For this the new file is written and synced under another name,
    the old one gets a second name, then the new one is moved over the old, and the second name over the file before.
    A damaged old file never pushes out the whole one before it; where there is none, the one before belongs to a run
    that somebody has removed, and goes.

    One process at a time may save to a path. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    old = _second_name(path)
    _finish_a_save_cut_off(path, old)
    _remove_leftovers(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}~")
    new = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(dumps(state))
            file.flush()
            os.fsync(file.fileno())
        is_first = not path.exists()
        keeps_old = _is_whole(path)
        if keeps_old:
            _give_second_name(path, old)
        new.replace(path)
        if keeps_old:
            old.replace(previous(path))
        elif is_first:
            previous(path).unlink(missing_ok=True)
    except BaseException:
        new.unlink(missing_ok=True)
        _finish_a_save_cut_off(path, old)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load(path: Path | str) -> dict[str, Any]:
    """The state that was saved last to `path`; where that file is damaged, the one before, with a warning in the log.

    Raises FileNotFoundError, and DamagedCheckpointError where neither file is whole.
    """
    path = Path(path)
    try:
        return _load_one(path)
    except DamagedCheckpointError as error:
        damage = error
    before = _second_name(path) if _is_whole(_second_name(path)) else previous(path)
    try:
        state = _load_one(before)
    except FileNotFoundError:
        raise damage from None
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"{damage}; {error}") from error
    logger.warning("%s; continuing with the one before, %s", damage, before.name)
    return state


def _load_one(path: Path) -> dict[str, Any]:
    try:
        return loads(path.read_bytes())
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"{path}: {error}") from error


def _is_whole(path: Path) -> bool:
    try:
        _check(path.read_bytes())
    except (DamagedCheckpointError, FileNotFoundError):
        return False
    return True


def _check(data: bytes) -> None:
    """Raises DamagedCheckpointError where these are not the bytes that `dumps` made."""
    if len(data) < _HEADER_SIZE or not data.startswith(_MAGIC):
        raise DamagedCheckpointError(f"not a samstudy checkpoint ({len(data)} bytes)")
    version = int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 2], "big")
    if version != _VERSION:
        raise DamagedCheckpointError(f"checkpoint format must be {_VERSION}, got {version}")
    payload = memoryview(data)[_HEADER_SIZE:]
    if data[:_HEADER_SIZE] != _header(payload):
        raise DamagedCheckpointError(f"damaged checkpoint: the checksum of its {len(payload)} bytes is wrong")


def _header(payload: memoryview) -> bytes:
    return b"".join((_MAGIC, _VERSION.to_bytes(2, "big"), hashlib.sha256(payload).digest()))


def _second_name(path: Path) -> Path:
    """What the checkpoint at `path` is called too while the next one takes its place."""
    return path.with_name(f".{path.name}~previous")


def _finish_a_save_cut_off(path: Path, old: Path) -> None:
    """Where a save was cut off once its file was in place, the one before lies under its second name still."""
    if _is_whole(old) and not (path.exists() and old.samefile(path)):
        old.replace(previous(path))
    else:
        old.unlink(missing_ok=True)


def _give_second_name(path: Path, name: Path) -> None:
    try:
        name.hardlink_to(path)
    except OSError:  # a file system without hard links, or one that forbids them
        shutil.copyfile(path, name)


def _remove_leftovers(path: Path) -> None:
    """Removes the unfinished files of processes that were killed while they saved to this path."""
    unfinished = re.compile(rf"\.{re.escape(path.name)}~[a-z0-9_]{{8}}")
    for item in path.parent.iterdir():
        if unfinished.fullmatch(item.name):
            item.unlink(missing_ok=True)
