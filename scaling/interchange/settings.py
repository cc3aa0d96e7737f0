"""The JSON beside weights: whoever wrote it, no value is believed to be of its type."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.errors import UserError


@dataclass(frozen=True)
class Settings:
    """One JSON object, asked by key; everything here raises `UserError` naming key and value."""

    path: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> Settings:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} cannot be read as JSON: {error}") from error
        if not isinstance(found, dict):
            raise UserError(f"{path} must hold a JSON object, not {type(found).__name__}.")
        return cls(path, found)

    def whole(self, key: str) -> int:
        """A whole number of at least 1."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{self.path}: {key}={value!r} must be a whole number of at least 1.")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.path}: {key}={value!r} must be true or false.")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """An object; empty where there is none."""
        value = self.values.get(key, {})
        if value is not None and not isinstance(value, dict):
            raise UserError(f"{self.path}: {key}={value!r} must be an object.")
        return value or {}

    def one_of(self, key: str, known: Collection[str], default: str, why: str = "") -> str:
        """A word among `known`; `why` is said of others."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in known:
            reason = why or f"it cannot be read here, but {', '.join(known)} can."
            raise UserError(f"{self.path}: {key}={value!r}: {reason}")
        return value
