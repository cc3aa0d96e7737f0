"""evaluation.json: the numbers of all metrics of a run at the top, and how each came about.

    {"downstream_kl": 0.12, ..., "metrics": {"downstream": {"identity": ..., "version": 1,
     "settings": {...}, "seconds": 3.2, "peak_memory_bytes": ..., "notes": {...}}}}

A metric is done where its identity (a hash of name, version, settings, material and weights) is
that of what is wanted; only then is it not measured again. The file is replaced whole after each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scaling.errors import UserError
from scaling.evaluation.metric import Measured
from scaling.runs.store import RunFolder
from scaling.storage.atomic import read_json, write_json
from scaling.storage.hashing import canonical_json, sha256_hex

ID_DIGITS = 12


def identity(name: str, version: int, **what: Any) -> str:
    """Short hash of all that determines a metric's numbers. `what` is JSON."""
    content = {"name": name, "version": version, **what}
    return sha256_hex(canonical_json(content))[:ID_DIGITS]


class Results:
    """The evaluation.json of one run."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.evaluation_path
        self._content = self._read()

    @property
    def numbers(self) -> dict[str, float | None]:
        return {name: value for name, value in self._content.items() if name != "metrics"}

    def has(self, metric: str, wanted: str) -> bool:
        """Whether that metric's numbers are of the identity wanted."""
        return self._metrics().get(metric, {}).get("identity") == wanted

    def put(self, metric: str, identity: str, measured: Measured, how: Mapping[str, Any]) -> None:
        """Write a metric's numbers in the place of those it had, at once and whole.

        Raises:
            UserError: a full disk.
        """
        before = self._metrics().get(metric, {}).get("columns", [])
        kept = {name: value for name, value in self.numbers.items() if name not in before}
        entry = {
            "identity": identity,
            "columns": list(measured.numbers),
            **how,
            "notes": dict(measured.notes),
        }
        self._content = {
            **kept,
            **measured.numbers,
            "metrics": {**self._metrics(), metric: entry},
        }
        write_json(self._path, self._content)

    def _metrics(self) -> dict[str, Any]:
        return self._content.get("metrics", {})

    def _read(self) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        content = read_json(self._path)
        if not isinstance(content, dict) or not isinstance(content.get("metrics", {}), dict):
            raise UserError(
                f"{self._path} is not an evaluation: restore it, or remove it to have the run "
                "evaluated again."
            )
        return content
