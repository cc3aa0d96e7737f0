"""JSON files that carry their own checksum, for numbers that must not change unnoticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scaling.errors import UserError
from scaling.storage.atomic import read_json, write_json
from scaling.storage.hashing import canonical_json, sha256_hex

_SEAL = "sha256"


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Replace `path` by `content` with the sha256 of its canonical JSON beside it."""
    write_json(path, {**content, _SEAL: sha256_hex(canonical_json(content))})


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` wrote.

    Raises:
        UserError: the file is damaged or was changed.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: restore it or remove it.")
    seal = content.pop(_SEAL, None)
    if seal != sha256_hex(canonical_json(content)):
        raise UserError(f"{path} does not match its own sha256: it was changed or damaged.")
    return content
