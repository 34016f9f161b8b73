"""Where the checkpoints of a trial live: a folder per trial under the storage URI, in it a folder per attempt.

An attempt that was given up may still train somewhere, such as on a node that is cut off. So each attempt writes into a
folder of its own, and removes nothing but what is there and what earlier attempts have left.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

from service.spec_sections import Keep
from service.storage import list_folder, study_folder

_PARTIAL = ".partial"
_BLOCK_BYTES = 1024 * 1024
_KEPT = 2
"""The newest, and the one before for the case that the newest is damaged."""

_FOLDER = re.compile(r"(\d+)-\w+")
_BEST = ".best"
_FILE = re.compile(rf"(?:{_FOLDER.pattern}/)?(\d+)({re.escape(_BEST)})?\.ckpt")


@dataclass(frozen=True, slots=True, order=True)
class Checkpoint:
    """A file of the trial's folder that was saved after this epoch.

    attempt: 0 where it lies in no attempt's folder, as in what earlier versions of the service have saved. is_best: no
    epoch before it was as good, by what the trial is judged by.
    """

    epoch: int
    attempt: int
    path: str
    is_best: bool = False


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

    def opened(self, checkpoint: Checkpoint) -> tuple[int, Iterator[bytes]]:
        """How many bytes were saved there, and these in blocks; what has been opened stays to its end."""
        stream = self._files.open_input_file(f"{self._folder}/{checkpoint.path}")

        def blocks() -> Iterator[bytes]:
            with stream:
                while block := stream.read(_BLOCK_BYTES):
                    yield block

        return stream.size(), blocks()

    def discard(self, checkpoint: Checkpoint) -> None:
        """Removes one that is of no use, so that it does not count among those that are kept."""
        self._files.delete_file(f"{self._folder}/{checkpoint.path}")

    def forget_best_beside(self, taken: Checkpoint) -> None:
        """Removes the best ones of attempts after that of the checkpoint which is gone on from: they had started over.

        The state that is gone on from knows the best value of its own history, of which these are no part.
        """
        for checkpoint in self.found():
            if checkpoint.is_best and taken.attempt < checkpoint.attempt < self._attempt:
                self.discard(checkpoint)

    def save(self, epoch: int, content: bytes, *, is_best: bool = False) -> str:
        """Writes this attempt's checkpoint of the epoch, then removes what is not kept; answers its path.

        Kept are this attempt's two newest, what earlier attempts have left as long as it is among the two newest of
        all, and the best one: that of earlier attempts too, while this one, having started over, is behind them. What
        later attempts write is left alone: they own the trial.
        """
        folder = f"{self._folder}/{self._own}"
        path = f"{folder}/{epoch:06d}{_BEST if is_best else ''}.ckpt"
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

    def tidy(self, keep: Keep, *, up_to_attempt: int) -> None:
        """Removes what is not to stay of a trial that ended with this attempt, as `checkpoint.keep` says it.

        The trial may run again by now: folders with higher numbers stay. A folder's number is its attempt's or higher
        (`take_over`). So nothing of a later attempt goes, but something of these may stay.
        """
        self.remove(self.surplus(keep, up_to_attempt=up_to_attempt))

    def surplus(self, keep: Keep, *, up_to_attempt: int | None = None) -> list[str]:
        """Paths of what is not to stay of a trial that has ended, as `checkpoint.keep` says it, for `remove`.

        up_to_attempt: folders with higher numbers are left out; None: no folder is.
        """
        listed = [path for path in self._listed() if up_to_attempt is None or _number(path) <= up_to_attempt]
        found = _checkpoints(listed)
        latest = found[:1] if keep in ("latest", "latest_and_best") else []
        best = best_of(found) if keep in ("best", "latest_and_best") else []
        return _all_but([*latest, *best], listed)

    def remove(self, paths: Iterable[str]) -> None:
        """Removes files of the trial, and folders with all that they have, where they are still there."""
        for path in paths:
            remove = self._files.delete_dir if _FOLDER.fullmatch(path) else self._files.delete_file
            with suppress(FileNotFoundError):
                remove(f"{self._folder}/{path}")

    @property
    def _own(self) -> str:
        return f"{self._attempt:04d}-{self._writer}"

    def _prune(self) -> None:
        ours = [path for path in self._listed() if self._is_ours(path)]
        found = _checkpoints(ours)
        own = [checkpoint for checkpoint in found if checkpoint.attempt == self._attempt]
        earlier = [checkpoint for checkpoint in found if checkpoint.attempt < self._attempt]
        starts_over = bool(own and earlier) and own[0].epoch <= earlier[0].epoch
        best = [*best_of(own), *best_of(earlier)] if starts_over else best_of(found)
        self.remove(_all_but([*found[:_KEPT], *own[:_KEPT], *best], ours))

    def _is_ours(self, path: str) -> bool:
        """Whether it is this attempt's, or was left by an earlier one."""
        return _top(path) == self._own or _number(path) < self._attempt

    def _listed(self) -> list[str]:
        """Paths below the trial's folder, of files and folders."""
        found = list_folder(self._files, self._folder, recursive=True)
        return [info.path.removeprefix(f"{self._folder}/") for info in found]


def best_of(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """The best one of a trial's checkpoints, where there is one: the last that the last attempt to have any has saved.

    An attempt that goes on from what those before it have saved knows how good that was. One that had to start over
    knows it not, until it has passed them.
    """
    best = [checkpoint for checkpoint in checkpoints if checkpoint.is_best]
    return [max(best, key=lambda checkpoint: (checkpoint.attempt, checkpoint.epoch))] if best else []


def _top(path: str) -> str:
    return path.partition("/")[0]


def _number(path: str) -> int:
    """The number of the attempt's folder that it is, or is in; 0 where it is in none."""
    numbered = _FOLDER.fullmatch(_top(path))
    return int(numbered[1]) if numbered else 0


def _all_but(kept: Iterable[Checkpoint], listed: Collection[str]) -> list[str]:
    """The other checkpoints, what was left behind unfinished, and attempts' folders that have nothing else."""
    needed = {checkpoint.path for checkpoint in kept}
    needed_folders = {_top(path) for path in needed}
    emptied = {path for path in listed if _FOLDER.fullmatch(path) and path not in needed_folders}
    files = {path for path in listed if path.endswith(_PARTIAL) or _FILE.fullmatch(path)}
    return [*emptied, *(path for path in files - needed if _top(path) not in emptied)]


def _checkpoints(paths: Iterable[str]) -> list[Checkpoint]:
    """Those among the paths that are checkpoints, the newest first."""
    matches = filter(None, map(_FILE.fullmatch, paths))
    checkpoints = (Checkpoint(int(found[2]), int(found[1] or 0), found[0], bool(found[3])) for found in matches)
    return sorted(checkpoints, reverse=True)
