"""Where the checkpoints of a trial live: a folder per trial under the storage URI, in it a folder per attempt.

An attempt that was given up may still train somewhere, such as on a node that is cut off. So each attempt writes into a
folder of its own, and removes nothing but what is there and what earlier attempts have left.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

from pyarrow import fs

from service.storage import study_folder

_PARTIAL = ".partial"
_KEPT = 2
"""The newest, and the one before for the case that the newest is damaged."""

_FOLDER = re.compile(r"(\d+)-\w+")
_FILE = re.compile(rf"(?:{_FOLDER.pattern}/)?(\d+)\.ckpt")


@dataclass(frozen=True, slots=True, order=True)
class Checkpoint:
    """A file of the trial's folder that was saved after this epoch.

    attempt: 0 where it lies in no attempt's folder, as in what earlier versions of the service have saved.
    """

    epoch: int
    attempt: int
    path: str


class TrialCheckpoints:
    """The checkpoints of one trial, on any file system that the URI names (file, s3, gs, …), for one attempt.

    A file appears whole or not at all. Raises OSError where the storage does not do its part; what was there before is
    there then as well.
    """

    def __init__(self, storage_uri: str, study_id: str, trial_id: str, *, attempt: int = 1) -> None:
        self._files, folder = study_folder(storage_uri, study_id)
        self._folder = f"{folder}/{trial_id}"
        self._attempt = attempt
        self._writer = uuid4().hex[:8]  # two drivers may give the same number, where the store never heard of the first

    def found(self) -> list[Checkpoint]:
        """Every checkpoint of the trial, of whichever attempt, the newest first."""
        return _checkpoints(self._listed())

    def epochs(self) -> list[int]:
        """The epochs that have a checkpoint, the newest first."""
        return sorted({checkpoint.epoch for checkpoint in self.found()}, reverse=True)

    def take_over(self) -> list[Checkpoint]:
        """What there is, the newest first. This attempt comes after all who have saved it, whatever their numbers."""
        found = self.found()
        self._attempt = max([self._attempt, *(checkpoint.attempt + 1 for checkpoint in found)])
        return found

    def read(self, checkpoint: Checkpoint) -> bytes:
        """What was saved there."""
        with self._files.open_input_stream(f"{self._folder}/{checkpoint.path}") as stream:
            content: bytes = stream.read()
            return content

    def discard(self, checkpoint: Checkpoint) -> None:
        """Removes one that is of no use, so that it does not count among those that are kept."""
        self._files.delete_file(f"{self._folder}/{checkpoint.path}")

    def save(self, epoch: int, content: bytes) -> str:
        """Writes this attempt's checkpoint of the epoch, then removes what is not kept; answers its path.

        Kept are this attempt's two newest, and what earlier attempts have left as long as it is among the two newest of
        all. What later attempts write is left alone: they own the trial.
        """
        folder = f"{self._folder}/{self._own}"
        path = f"{folder}/{epoch:06d}.ckpt"
        partial = path + _PARTIAL
        try:
            self._files.create_dir(folder, recursive=True)
            with self._files.open_output_stream(partial) as stream:
                stream.write(content)
            self._files.move(partial, path)
        except BaseException:
            with suppress(OSError):
                self._files.delete_file(partial)
            raise
        with suppress(OSError):  # what is too much costs space, and this checkpoint is there
            self._prune()
        return path

    def tidy(self, keep: Literal["latest", "none"]) -> None:
        """Removes what is not to stay of a trial that has ended, as `checkpoint.keep` says it."""
        if keep == "none":
            self.delete()
        else:
            listed = self._listed()
            self._remove(listed, but=_checkpoints(listed)[:1])

    def delete(self) -> None:
        """Removes every checkpoint of the trial."""
        if self._files.get_file_info(self._folder).type is fs.FileType.Directory:
            self._files.delete_dir(self._folder)

    @property
    def _own(self) -> str:
        return f"{self._attempt:04d}-{self._writer}"

    def _prune(self) -> None:
        ours = [path for path in self._listed() if self._is_ours(path)]
        found = _checkpoints(ours)
        own = [checkpoint for checkpoint in found if checkpoint.attempt == self._attempt]
        self._remove(ours, but=[*found[:_KEPT], *own[:_KEPT]])

    def _is_ours(self, path: str) -> bool:
        """Whether it is this attempt's, or was left by an earlier one."""
        top = path.partition("/")[0]
        numbered = _FOLDER.fullmatch(top)
        return top == self._own or numbered is None or int(numbered[1]) < self._attempt

    def _remove(self, listed: Collection[str], *, but: Iterable[Checkpoint]) -> None:
        """Removes the checkpoints, what was left behind unfinished, and folders that have nothing else."""
        kept = {checkpoint.path for checkpoint in but}
        needed = {path.partition("/")[0] for path in kept}
        emptied = {path for path in listed if _FOLDER.fullmatch(path) and path not in needed}
        for folder in emptied:
            self._files.delete_dir(f"{self._folder}/{folder}")
        for path in listed:
            is_file = path.endswith(_PARTIAL) or _FILE.fullmatch(path)
            if is_file and path not in kept and path.partition("/")[0] not in emptied:
                self._files.delete_file(f"{self._folder}/{path}")

    def _listed(self) -> list[str]:
        """Paths below the trial's folder, of files and folders."""
        listed = self._files.get_file_info(fs.FileSelector(self._folder, allow_not_found=True, recursive=True))
        return [info.path.removeprefix(f"{self._folder}/") for info in listed]


def _checkpoints(paths: Iterable[str]) -> list[Checkpoint]:
    """Those among the paths that are checkpoints, the newest first."""
    matches = filter(None, map(_FILE.fullmatch, paths))
    return sorted((Checkpoint(int(found[2]), int(found[1] or 0), found[0]) for found in matches), reverse=True)
