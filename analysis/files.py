"""Files written whole or not at all, with an error that says what to do."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from analysis.errors import TableError

_REMEDY = "give a path in an existing, writable folder"


def replace_text(path: Path, text: str, *, remedy: str = _REMEDY) -> None:
    """`replace_bytes` with text: written as UTF-8 with its line ends as they are."""
    replace_bytes(path, text.encode(), remedy=remedy)


def replace_bytes(path: Path, content: bytes, *, remedy: str = _REMEDY) -> None:
    """Replace `path` by `content` in one step: a reader sees the old content or the new one.

    A link is followed, and a device is never replaced by a file. What was there stays where the
    disk does not take the new.

    Raises:
        TableError: the folder is missing or not writable, or `path` is no regular file; `remedy`
            is what it tells the user to do.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise TableError(f"cannot write {path}: it is no regular file; give another path.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise TableError(f"cannot write {path} ({error.strerror}); {remedy}.") from error
    finally:  # after an interrupt too
        with suppress(OSError):
            temporary.unlink()
