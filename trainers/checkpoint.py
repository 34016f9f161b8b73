"""Checkpoints: a training state as bytes that notice damage, and as a file that is never half written.

Format: 8 bytes of magic, 2 bytes of format version, the SHA-256 of what follows, then torch's own serialisation.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

_MAGIC = b"SAMSTUDY"
_VERSION = 1
_HEADER_SIZE = len(_MAGIC) + 2 + hashlib.sha256().digest_size


class DamagedCheckpointError(ValueError):
    """Bytes that are no checkpoint, or one that was cut short or changed."""


def dumps(state: dict[str, Any]) -> bytes:
    """The state, of tensors, numbers, strings and containers of these, as bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    return b"".join((_MAGIC, _VERSION.to_bytes(2, "big"), hashlib.sha256(payload).digest(), payload))


def loads(data: bytes) -> dict[str, Any]:
    """The state that `dumps` wrote, its tensors on the CPU.

    Nothing but tensors and plain values is ever built. Raises DamagedCheckpointError.
    """
    if len(data) < _HEADER_SIZE or not data.startswith(_MAGIC):
        raise DamagedCheckpointError(f"not a samstudy checkpoint ({len(data)} bytes)")
    version = int.from_bytes(data[len(_MAGIC) : len(_MAGIC) + 2], "big")
    if version != _VERSION:
        raise DamagedCheckpointError(f"checkpoint format must be {_VERSION}, got {version}")
    payload = data[_HEADER_SIZE:]
    if hashlib.sha256(payload).digest() != data[len(_MAGIC) + 2 : _HEADER_SIZE]:
        raise DamagedCheckpointError(f"damaged checkpoint: the checksum of its {len(payload)} bytes is wrong")
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state


def save(state: dict[str, Any], path: Path) -> None:
    """Writes the state; a reader of `path` sees the previous file or the new one, whole, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(dumps(state))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load(path: Path) -> dict[str, Any]:
    """Reads what `save` wrote. Raises DamagedCheckpointError, FileNotFoundError."""
    try:
        return loads(path.read_bytes())
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"{path}: {error}") from error
