"""Where a study's files are under the storage URI: its checkpoints and logs, all in one folder."""

from __future__ import annotations

import re
from contextlib import suppress
from uuid import uuid4

from pyarrow import fs
from tenacity import retry, retry_if_exception_type, stop_after_attempt

_STUDY_ID = re.compile(r"[a-z0-9]{1,32}")


def study_folder(storage_uri: str, study_id: str) -> tuple[fs.FileSystem, str]:
    """The file system that the URI names (file, s3, gs, …), and the study's folder there.

    Raises ValueError for what is no URI, and OSError.
    """
    files, root = _opened(storage_uri)
    return files, f"{root.rstrip('/')}/studies/{study_id}"


@retry(retry=retry_if_exception_type(FileNotFoundError), stop=stop_after_attempt(5), reraise=True)
def list_folder(files: fs.FileSystem, folder: str, *, recursive: bool = False) -> list[fs.FileInfo]:
    """What the folder has; nothing where there is none. Raises OSError.

    A folder that is made or deleted at this very moment is not found in spite of `allow_not_found`, so it asks again.
    """
    infos: list[fs.FileInfo] = files.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=recursive))
    return infos


def delete_study_files(storage_uri: str, study_id: str) -> bool:
    """Deletes the study's folder with everything in it; False where there was none.

    Raises ValueError for what is no URI, or no id of a study, and OSError.
    """
    if not _STUDY_ID.fullmatch(study_id):  # anything else could lead to more than one study's files
        raise ValueError(f"{study_id!r} is no id of a study")
    files, folder = study_folder(storage_uri, study_id)
    if files.get_file_info(folder).type is not fs.FileType.Directory:
        return False
    files.delete_dir(folder)
    return True


def check_writable(storage_uri: str) -> None:
    """Writes a small file below the URI, reads it and deletes it. Raises ValueError for what is no URI, and OSError."""
    files, root = _opened(storage_uri)
    path, content = f"{root.rstrip('/')}/.samstudy-check-{uuid4().hex}", b"samstudy"
    files.create_dir(root, recursive=True)
    try:
        with files.open_output_stream(path) as stream:
            stream.write(content)
        with files.open_input_stream(path) as stream:
            if stream.read() != content:
                raise OSError(f"{path} has something else than was written to it")
    finally:
        with suppress(FileNotFoundError):
            files.delete_file(path)


def _opened(storage_uri: str) -> tuple[fs.FileSystem, str]:
    """The file system and the path in it. Its errors reach every user; what the service is configured with does not."""
    try:
        files, root = fs.FileSystem.from_uri(storage_uri)
    except OSError as error:
        raise OSError(_without(storage_uri, error)) from None
    except ValueError as error:
        raise ValueError(_without(storage_uri, error)) from None
    return files, root


def _without(storage_uri: str, error: Exception) -> str:
    return str(error).replace(storage_uri, "SAMSTUDY_STORAGE")
