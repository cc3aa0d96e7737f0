"""The token ids that a live stream reads again in every epoch, kept beside the stores.

A folder of a fixed number of contexts: contexts.npy, int32 [n, context] in harvest order, and
contexts.json, which says how many and with which sha256. Four bytes for a vector of a thousand.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scaling.errors import UserError
from scaling.storage.atomic import atomic_folder, write_bytes
from scaling.storage.hashing import file_sha256, sha256_hex
from scaling.storage.sealed import read_sealed, write_sealed

ARRAY, FACTS = "contexts.npy", "contexts.json"


def has_contexts(folder: Path) -> bool:
    """Whether `write_contexts` has finished there."""
    return (folder / FACTS).is_file()


def write_contexts(folder: Path, contexts_CT: NDArray[np.int32]) -> None:
    """Make `folder`, whole or not at all.

    Raises:
        UserError: a full disk.
    """
    content = io.BytesIO()
    np.save(content, contexts_CT)
    shutil.rmtree(folder, ignore_errors=True)  # without its facts it is none
    with atomic_folder(folder) as temp:
        write_bytes(temp / ARRAY, content.getvalue())
        facts = {"n_contexts": len(contexts_CT), "array_sha256": sha256_hex(content.getvalue())}
        write_sealed(temp / FACTS, facts)


def contexts_sha256(folder: Path) -> str:
    """The recorded hash of the file of token ids.

    Raises:
        UserError: they are gone, or their description is damaged.
    """
    if not has_contexts(folder):
        raise _corrupt(folder, "there are none")
    try:
        return read_sealed(folder / FACTS)["array_sha256"]
    except UserError as error:
        raise _corrupt(folder, str(error).rstrip(".")) from error


def verify_contexts(folder: Path) -> None:
    """Check every byte.

    Raises:
        UserError: the file is missing or changed.
    """
    path = folder / ARRAY
    if not path.is_file() or file_sha256(path) != contexts_sha256(folder):
        raise _corrupt(folder, f"{path} does not match its recorded sha256")


def read_contexts(folder: Path) -> NDArray[np.int32]:
    """The contexts, int32 [n, context], memory-mapped.

    Raises:
        UserError: the file is missing or cut short.
    """
    try:
        return np.load(folder / ARRAY, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise _corrupt(folder, f"{folder / ARRAY} cannot be read ({error})") from error


def _corrupt(folder: Path, fault: str) -> UserError:
    return UserError(
        f"the token ids of a live stream in {folder} are not sound: {fault}. Remove the folder and "
        "launch again (the text is tokenized anew), or restore it from a copy."
    )
