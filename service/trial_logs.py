"""The log of one attempt of a trial under the storage URI: its worker writes it piece by piece, the API reads it.

Objects of S3 and its like cannot be appended to. So a log is a row of pieces, each named by the offset of its first
byte; the last one is written anew, longer each time, until it is large enough for the next to begin. A reader who knows
up to which byte he has read thus finds the rest, and a log has few objects however often something was added to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from pyarrow import fs

from service.storage import list_folder, study_folder

_PIECE = ".log"
_END = "end"
_PARTIAL = ".partial"
_BLOCK_BYTES = 64 * 1024
_WHOLE_OBJECTS = frozenset({"s3", "gcs", "abfs"})
"""Kinds of storage where an object appears when it is complete, so that it needs no name of its own until then."""


@dataclass(frozen=True, slots=True)
class LogPiece:
    """Bytes `offset` to `offset + size_bytes` of a log, as one object."""

    offset: int
    size_bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.size_bytes


@dataclass(frozen=True, slots=True)
class LogExtent:
    """What there is of a log at one moment. is_finished: its writer has said that no more will come."""

    pieces: tuple[LogPiece, ...]
    is_finished: bool

    @property
    def size_bytes(self) -> int:
        return self.pieces[-1].end if self.pieces else 0


class TrialLog:
    """The output of one attempt, as bytes that are UTF-8 where the training printed UTF-8. One process writes it.

    Every method raises OSError where the storage does not do its part.
    """

    def __init__(self, storage_uri: str, study_id: str, trial_id: str, attempt: int) -> None:
        self._files, folder = study_folder(storage_uri, study_id)
        self._folder = f"{folder}/logs/{trial_id}/{attempt}"

    def clear(self) -> None:
        """Removes what there is: of an attempt of this number that no store has heard of."""
        if not self._has_whole_objects:
            self._files.create_dir(self._folder, recursive=True)
        for info in self._listed():
            self._files.delete_file(info.path)

    def write(self, offset: int, content: bytes) -> None:
        """Writes the piece that begins at `offset`; what it had before is its beginning."""
        self._put(self._path(offset), content)

    def finish(self) -> None:
        """Says that nothing more will come."""
        self._put(f"{self._folder}/{_END}", b"")

    def extent(self) -> LogExtent:
        """What there is now; nothing, where nothing was ever written."""
        files = self._listed()
        pieces = [
            LogPiece(int(info.base_name.removesuffix(_PIECE)), info.size)
            for info in files
            if info.base_name.endswith(_PIECE)
        ]
        pieces.sort(key=lambda piece: piece.offset)
        return LogExtent(tuple(pieces), any(info.base_name == _END for info in files))

    def read(self, extent: LogExtent, *, after: int = 0) -> Iterator[bytes]:
        """The bytes from the offset `after` on, block by block; at least those that `extent` has."""
        for piece in extent.pieces:
            if piece.end <= after:
                continue
            if piece.offset > after:
                return  # somebody has removed the piece between
            with self._files.open_input_file(self._path(piece.offset)) as stream:
                stream.seek(after - piece.offset)
                while block := stream.read(_BLOCK_BYTES):
                    after += len(block)
                    yield block

    def seek_last_lines(self, extent: LogExtent, lines: int) -> Iterator[int]:
        """Looks from the end on where the last `lines` lines begin, block by block: the last answer is where.

        Where there are fewer lines, that is where the log begins.
        """
        yield extent.size_bytes
        left = lines
        for piece in reversed(extent.pieces if lines else ()):
            with self._files.open_input_file(self._path(piece.offset)) as stream:
                for start in reversed(range(0, piece.size_bytes, _BLOCK_BYTES)):
                    block = stream.read_at(min(_BLOCK_BYTES, piece.size_bytes - start), start)
                    if piece.offset + start + len(block) == extent.size_bytes:
                        block = block[:-1]  # a line feed at the very end begins no line
                    found = len(block)
                    while left and (found := block.rfind(b"\n", 0, found)) >= 0:
                        left -= 1
                    yield piece.offset + start + (0 if left else found + 1)
                    if not left:
                        return

    def _put(self, path: str, content: bytes) -> None:
        if self._has_whole_objects:
            with self._files.open_output_stream(path) as stream:
                stream.write(content)
            return
        partial = path + _PARTIAL
        try:
            with self._files.open_output_stream(partial) as stream:
                stream.write(content)
            self._files.move(partial, path)
        except OSError:
            with suppress(OSError):
                self._files.delete_file(partial)
            raise

    @property
    def _has_whole_objects(self) -> bool:
        return self._files.type_name in _WHOLE_OBJECTS

    def _listed(self) -> list[fs.FileInfo]:
        return [info for info in list_folder(self._files, self._folder) if info.type is fs.FileType.File]

    def _path(self, offset: int) -> str:
        return f"{self._folder}/{offset:012d}{_PIECE}"
