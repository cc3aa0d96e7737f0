"""One spelling of a value, and its hash: what identities are made of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def canonical_json(obj: Any) -> bytes:
    """The only JSON spelling of `obj`: sorted keys, no spaces, ASCII, floats by `repr`.

    1 and 1.0 are different values here: a schema has to fix the type of each field.

    Raises `ValueError` for NaN and infinity, `TypeError` for keys that are not strings and for
    anything JSON has no word for.
    """
    _require_string_keys(obj)
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256_hex(data: bytes) -> str:
    """64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """64 lower-case hex digits over the content of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_string_keys(obj: Any) -> None:
    # json would spell the keys 1 and "1" alike: two values, one identity.
    if isinstance(obj, dict):
        for key, value in obj.items():
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is not a string")
            _require_string_keys(value)
    elif isinstance(obj, list | tuple):
        for value in obj:
            _require_string_keys(value)
