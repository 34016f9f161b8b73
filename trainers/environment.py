"""The environment variables that training reads, all of them here.

SAMSTUDY_DATA_DIR: a directory, possibly read-only, with data sets that were put there by hand.
SAMSTUDY_HOME: where samstudy keeps its own files; `~/.samstudy` where unset.
"""

from __future__ import annotations

import os
from pathlib import Path


def data_dir() -> Path | None:
    """The directory of data sets provided by hand; None where SAMSTUDY_DATA_DIR is unset or empty."""
    value = os.environ.get("SAMSTUDY_DATA_DIR")
    return Path(value).expanduser() if value else None


def data_cache_dir() -> Path:
    """The directory that data sets are downloaded to and unpacked in; it need not exist."""
    return Path(os.environ.get("SAMSTUDY_HOME") or "~/.samstudy").expanduser() / "data"
