"""Where the checkpoints of a trial live: a folder per trial under the storage URI, a file per checkpointed epoch."""

from __future__ import annotations

from collections.abc import Iterator

from pyarrow import fs

_SUFFIX = ".ckpt"
_KEPT = 2
"""The newest, and the one before for the case that the newest is damaged or its epoch was never reported."""


class TrialCheckpoints:
    """The checkpoints of one trial, on any file system that the URI names (file, s3, gs, …).

    A file appears whole or not at all. Raises OSError where the storage does not do its part.
    """

    def __init__(self, storage_uri: str, study_id: str, trial_id: str) -> None:
        self._files, root = fs.FileSystem.from_uri(storage_uri)
        self._folder = f"{root.rstrip('/')}/studies/{study_id}/{trial_id}"

    def newest_first(self, *, up_to: int | None = None) -> Iterator[tuple[int, bytes]]:
        """Every checkpoint as (epoch, content), the newest first; those after the epoch `up_to` are left out."""
        for epoch in sorted(self._epochs(), reverse=True):
            if up_to is not None and epoch > up_to:
                continue
            with self._files.open_input_stream(self._path(epoch)) as stream:
                yield epoch, stream.read()

    def save(self, epoch: int, content: bytes, *, keep: int = _KEPT) -> str:
        """Writes the checkpoint of this epoch, then removes all but the newest `keep`; answers its path."""
        self._files.create_dir(self._folder, recursive=True)
        path = self._path(epoch)
        with self._files.open_output_stream(f"{path}.partial") as stream:
            stream.write(content)
        self._files.move(f"{path}.partial", path)
        self.prune(keep)
        return path

    def prune(self, keep: int) -> None:
        """Removes all but the newest `keep`."""
        for old in sorted(self._epochs(), reverse=True)[keep:]:
            self._files.delete_file(self._path(old))

    def delete(self) -> None:
        """Removes every checkpoint of the trial."""
        if self._files.get_file_info(self._folder).type is fs.FileType.Directory:
            self._files.delete_dir(self._folder)

    def _epochs(self) -> list[int]:
        listed = self._files.get_file_info(fs.FileSelector(self._folder, allow_not_found=True))
        return [int(info.base_name.removesuffix(_SUFFIX)) for info in listed if info.base_name.endswith(_SUFFIX)]

    def _path(self, epoch: int) -> str:
        return f"{self._folder}/{epoch:06d}{_SUFFIX}"
