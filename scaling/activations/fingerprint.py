"""A quick name for the content of files too large to hash at every launch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from scaling.storage.hashing import canonical_json, sha256_hex

WHOLE_BYTES = 16 << 20
"""Files up to this size are hashed whole."""
BLOCK_BYTES = 64 << 10
N_BLOCKS = 64


def fingerprint_files(root: Path, paths: Iterable[Path]) -> str:
    """64 hex digits over the names below `root`, sizes and contents of `paths`.

    Of a file above 16 MiB 64 evenly spaced blocks of 64 KiB stand for the content: a retrained
    model differs in every block, a longer file in its size.
    """
    entries = [
        [path.relative_to(root).as_posix(), path.stat().st_size, _content(path)] for path in paths
    ]
    return sha256_hex(canonical_json(sorted(entries)))


def _content(path: Path) -> str:
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return sha256_hex(path.read_bytes())
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for index in range(N_BLOCKS):
            file.seek((size - BLOCK_BYTES) * index // (N_BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()
