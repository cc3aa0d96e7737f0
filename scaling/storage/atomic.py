"""Files and folders that are either whole or absent, whatever kills the writer.

Everything is written aside, in the folder where it will live, flushed to the disk and then renamed:
a reader sees the old content or the new one, never a part. A full disk leaves the old content and
becomes a `UserError` that names the path and the bytes.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaling.errors import UserError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP}
_TEMP_SUFFIX = ".tmp"


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step.

    Raises `UserError` when the disk is full; the old content stays.
    """
    with atomic_path(path, bytes_needed=len(data)) as temp:
        temp.write_bytes(data)


def write_json(path: Path, obj: Any) -> None:
    """Replace `path` by `obj` as indented JSON in one step; NaN and infinity raise `ValueError`."""
    text = json.dumps(obj, indent=2, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def create_json(path: Path, obj: Any) -> bool:
    """Put `obj` at `path` unless something is there: of several that try at once one gets True.

    The file appears whole, by a hard link, on NFS too.
    """
    with _aside(path) as offer:
        write_json(offer, obj)
        return _link(offer, path)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises `UserError` naming the file when it is damaged, `FileNotFoundError` when it is absent.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # too many digits, nested too deeply
        raise UserError(
            f"{path} is not valid JSON ({error}); it was not written by this program or was "
            "damaged since: restore it, or move it away to have it made again"
        ) from error


@contextmanager
def atomic_path(path: Path, *, bytes_needed: int | None = None) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` when the block ends without an exception.

    For writers that want a file name (safetensors, numpy). The content is flushed to the disk
    before the rename. Raises `UserError` when the disk is full.
    """
    with reports_full_disk(path, bytes_needed), _aside(path) as temp:
        yield temp
        _flush(temp)
        with _flushed_after(path.parent):
            temp.replace(path)


def commit_folder(temp: Path, final: Path) -> None:
    """Flush every file below `temp` to the disk, then rename the folder to `final`.

    Raises `FileExistsError` when `final` exists, `UserError` (and removes `temp`) when the disk is
    full.
    """
    if final.exists():
        raise FileExistsError(errno.EEXIST, "the folder is there already", str(final))
    try:
        with reports_full_disk(final, _tree_bytes(temp)):
            for path in temp.rglob("*"):
                _flush(path)
            _flush(temp)
            temp.rename(final)
            _flush(final.parent)
    except UserError:
        shutil.rmtree(temp, ignore_errors=True)
        raise


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """An empty folder to fill; it becomes `final` when the block ends without an exception.

    For the one process that may write there: what a killed one left half-filled is dropped.
    Raises `FileExistsError` when `final` exists, `UserError` when the disk is full.
    """
    temp = final.with_name(f".{final.name}{_TEMP_SUFFIX}")
    _remove(temp)
    with reports_full_disk(final):
        temp.mkdir(parents=True)
        try:
            yield temp
        except Exception:
            shutil.rmtree(temp, ignore_errors=True)
            raise
    commit_folder(temp, final)


@contextmanager
def reports_full_disk(path: Path, bytes_needed: int | None = None) -> Iterator[None]:
    """Turn "no space left" inside the block into a `UserError` naming `path` and the bytes."""
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        needed = "" if bytes_needed is None else f" {bytes_needed:,} bytes were needed,"
        raise UserError(
            f"the disk is full while writing {path}:{needed} {_free_bytes(path):,} are free; "
            "free some space (or point runs_dir or data_dir elsewhere) and run the same command "
            "again: it goes on from here"
        ) from error


def remove_temporaries(folder: Path, *, but_of: Sequence[str] = ()) -> None:
    """Remove the files and folders that killed writers left aside.

    Only for the one process that may write there; `but_of` names files that others write too.
    """
    others = tuple(f".{name}." for name in but_of)
    for leftover in folder.glob(f".*{_TEMP_SUFFIX}"):
        if not leftover.name.startswith(others):
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    temp = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_TEMP_SUFFIX}")
    try:
        yield temp
    finally:
        temp.unlink(missing_ok=True)


def _link(offer: Path, path: Path) -> bool:
    try:
        path.hardlink_to(offer)
    except FileExistsError:
        # An NFS server's answer may get lost and the retry then meets our own link.
        return offer.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _create_exclusively(path, offer.read_bytes())
    return True


def _create_exclusively(path: Path, content: bytes) -> bool:
    """For file systems without hard links: a reader may meet the file before its content."""
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _is_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in _DISK_FULL
    # safetensors reports the system's error as text only.
    return any(f"os error {number}" in str(error) for number in _DISK_FULL)


@contextmanager
def _flushed_after(folder: Path) -> Iterator[None]:
    """Flush the folder after the block, wherever it is by then: who waited for a file in it may
    rename it at once."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    """Have the operating system put a file or folder on the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tree_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _free_bytes(path: Path) -> int:
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    return shutil.disk_usage(existing).free
