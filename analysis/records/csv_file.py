"""CSV files as pandas reads them, compressed or not, with one error for all that can be wrong."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import TableError

_BROKEN = (
    *(ValueError, OverflowError),  # of what is in it; parser and decoding errors are ValueErrors
    *(OSError, EOFError, ImportError),  # not readable, cut short, packed as nothing here unpacks
    *(zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError),
)


def read_csv(path: Path, *, name: str, remedy: str, **options: Any) -> pd.DataFrame:
    """`pandas.read_csv`. TableError "NAME is not a CSV table (why); REMEDY" where it cannot."""
    try:
        return pd.read_csv(path, **options)
    except _BROKEN as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise TableError(f"{name} is not a CSV table ({str(why).strip()}); {remedy}") from error
