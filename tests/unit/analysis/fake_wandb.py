"""A stand-in for `wandb.Api` with its attributes, counting requests and failing when told to.

As in wandb: a listing fetches pages when an index beyond them is asked for, and leaves out summary
and config when lazy; reading one of these of a lazy run is a request of its own; scan_history
fetches pages of steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class TooManyRequests(Exception):
    """As a `requests` error that wandb wraps."""

    def __init__(self, status: int = 429, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{status}")
        self.response = SimpleNamespace(status_code=status, headers=headers or {})


class CommError(Exception):
    """As wandb's: the cause is in `exc`."""

    def __init__(self, message: str, exc: Exception | None = None) -> None:
        super().__init__(message)
        self.exc = exc


@dataclass
class FakeServer:
    """Runs, newest last, and what was asked of them."""

    runs: list[FakeRun] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    failures: dict[int, BaseException] = field(default_factory=dict)
    """Number of a request, from 0 -> what it raises."""
    settings: dict[str, str] = field(default_factory=lambda: {"base_url": "https://w.example"})

    def answer(self, request: str) -> None:
        number = len(self.requests)
        self.requests.append(request)
        if number in self.failures:
            raise self.failures[number]


@dataclass
class FakeRun:
    server: FakeServer
    id: str
    group: str | None
    state: str
    summary_values: dict[str, Any]
    config_values: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    loaded: bool = False

    @property
    def summary(self) -> dict[str, Any]:
        self._load()
        return self.summary_values

    @property
    def config(self) -> dict[str, Any]:
        self._load()
        return self.config_values

    def _load(self) -> None:
        if not self.loaded:
            self.server.answer(f"run {self.id}")
            self.loaded = True

    def scan_history(self, *, page_size: int = 1000, min_step: int = 0) -> Iterator[dict[str, Any]]:
        last = self.rows[-1]["_step"] if self.rows else -1
        for first in range(min_step, last + 1, page_size):
            self.server.answer(f"history {self.id} from {first}")
            yield from (r for r in self.rows if first <= r["_step"] < first + page_size)

    def history(self, *_: Any, **__: Any) -> None:
        raise AssertionError("history samples; only scan_history gives every row")


class FakeListing:
    """As `wandb.apis.public.Runs`: `next` after a failed page would leave out a run."""

    def __init__(self, server: FakeServer, runs: list[FakeRun], per_page: int, lazy: bool) -> None:
        self._server, self._runs, self._per_page, self._lazy = server, runs, per_page, lazy
        self._there: list[FakeRun] = []

    def __getitem__(self, index: int) -> FakeRun:
        while index >= len(self._there) and len(self._there) < max(len(self._runs), 1):
            self._server.answer(f"page from {len(self._there)}, lazy={self._lazy}")
            if not self._runs:
                break
            page = self._runs[len(self._there) : len(self._there) + self._per_page]
            for run in page:
                run.loaded = not self._lazy
            self._there += page
        return self._there[index]


class FakeApi:
    def __init__(self, server: FakeServer) -> None:
        self._server = server
        self.settings = server.settings

    def runs(self, path: str, filters: dict[str, str], per_page: int, lazy: bool) -> FakeListing:
        assert path == "lab/laws"
        group = filters.get("group")
        runs = [run for run in self._server.runs if group in (None, run.group)]
        return FakeListing(self._server, runs, per_page, lazy)
