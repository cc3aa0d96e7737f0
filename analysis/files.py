"""Files written whole or not at all, with an error that says what to do."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from analysis.errors import TableError

_MOST_SHOWN = 80  # characters of a path in a message
_REMEDY = "give a path in an existing, writable folder"


def checked_path(path: Path) -> Path:
    """`path`, of which the system can say whether anything is there.

    Raises:
        TableError: it cannot: a name too long, a loop of links, a folder that may not be entered.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass  # whoever reads or writes there says what it needs
    except (OSError, ValueError) as error:
        shown = str(path) if len(str(path)) <= _MOST_SHOWN else f"{str(path)[:_MOST_SHOWN]}..."
        shown = shown.encode("utf-8", "backslashreplace").decode()
        reason = error.strerror if isinstance(error, OSError) else error
        raise TableError(f"{shown!r} is no usable path ({reason}); give another.") from error
    return path


def check_target(path: Path, *, remedy: str = _REMEDY) -> None:
    """Whether a file could be written there: to be asked before what it would hold is computed.

    Raises:
        TableError: as `replace_bytes`, where it can be known beforehand.
    """
    path = _file_or_nothing(path)
    if not path.parent.is_dir():
        reason = "Not a directory" if path.parent.exists() else "No such file or directory"
        raise cannot_write(path, reason, remedy)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise cannot_write(path, "Permission denied", remedy)


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
    path = _file_or_nothing(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error.strerror, remedy) from error
    finally:  # after an interrupt too
        with suppress(OSError):
            temporary.unlink()


def cannot_write(path: Path, reason: str | None, remedy: str) -> TableError:
    """The error that says so; to be raised."""
    return TableError(f"cannot write {path} ({reason}); {remedy}.")


def _file_or_nothing(path: Path) -> Path:
    """Where `path` leads. TableError where something is there that is no regular file."""
    path = checked_path(path).resolve()
    if path.exists() and not path.is_file():
        raise TableError(f"cannot write {path}: it is no regular file; give another path.")
    return path
