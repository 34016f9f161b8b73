"""Where the checkpoints of a trial live: a folder per trial under the storage URI, a file per checkpointed epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Literal
from uuid import uuid4

from pyarrow import fs

from service.storage import study_folder

_SUFFIX = ".ckpt"
_PARTIAL = ".partial"
_KEPT = 2
"""The newest, and the one before for the case that the newest is damaged or its epoch was never reported."""


class TrialCheckpoints:
    """The checkpoints of one trial, on any file system that the URI names (file, s3, gs, …).

    A file appears whole or not at all. Raises OSError where the storage does not do its part; what was there before is
    there then as well.
    """

    def __init__(self, storage_uri: str, study_id: str, trial_id: str) -> None:
        self._files, folder = study_folder(storage_uri, study_id)
        self._folder = f"{folder}/{trial_id}"

    def newest_first(self, *, up_to: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Every checkpoint as (epoch, content), the newest first; those after the epoch `up_to` are left out."""
        for epoch in self.epochs(up_to=up_to):
            yield epoch, self.read(epoch)

    def epochs(self, *, up_to: int | None = None) -> list[int]:
        """The epochs that have a checkpoint, the newest first; those after `up_to` are left out."""
        return [epoch for epoch in _epochs(self._names()) if up_to is None or epoch <= up_to]

    def read(self, epoch: int) -> bytes:
        """The content of this epoch's checkpoint."""
        with self._files.open_input_stream(self._path(epoch)) as stream:
            content: bytes = stream.read()
            return content

    def save(self, epoch: int, content: bytes, *, keep: int = _KEPT) -> str:
        """Writes the checkpoint of this epoch, then removes all but the newest `keep`; answers its path."""
        path = self._path(epoch)
        partial = f"{path}.{uuid4().hex}{_PARTIAL}"  # its own, should a worker that was given up still write too
        try:
            self._files.create_dir(self._folder, recursive=True)
            with self._files.open_output_stream(partial) as stream:
                stream.write(content)
            self._files.move(partial, path)
        except BaseException:
            with suppress(OSError):
                self._files.delete_file(partial)
            raise
        with suppress(OSError):  # what is too much costs space, and this checkpoint is there
            self.prune(keep)
        return path

    def prune(self, keep: int) -> None:
        """Removes all but the newest `keep`, and what was left behind unfinished."""
        names = self._names()
        for old in _epochs(names)[keep:]:
            self._files.delete_file(self._path(old))
        for name in names:
            if name.endswith(_PARTIAL):
                self._files.delete_file(f"{self._folder}/{name}")

    def tidy(self, keep: Literal["latest", "none"]) -> None:
        """Removes what is not to stay of a trial that has ended, as `checkpoint.keep` says it."""
        if keep == "none":
            self.delete()
        else:
            self.prune(1)

    def delete(self) -> None:
        """Removes every checkpoint of the trial."""
        if self._files.get_file_info(self._folder).type is fs.FileType.Directory:
            self._files.delete_dir(self._folder)

    def _names(self) -> list[str]:
        listed = self._files.get_file_info(fs.FileSelector(self._folder, allow_not_found=True))
        return [info.base_name for info in listed]

    def _path(self, epoch: int) -> str:
        return f"{self._folder}/{epoch:06d}{_SUFFIX}"


def _epochs(names: Iterable[str]) -> list[int]:
    return sorted((int(name.removesuffix(_SUFFIX)) for name in names if name.endswith(_SUFFIX)), reverse=True)
