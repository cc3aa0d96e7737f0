"""Runs of a W&B project through its API: every run's summary, and whole histories, never samples.

A project is listed once per call; a run that has finished is asked for once and kept on disk
(`wandb_cache`). Requests are spaced and repeated when W&B is busy (`pace`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.errors import TableError
from analysis.records import wandb_reader
from analysis.records.pace import Pace
from analysis.records.rows import Row
from analysis.records.wandb_cache import RunCache
from analysis.records.wandb_rows import (
    Copied,
    history_row,
    plain,
    refuse_foreign,
    row_of_copy,
)

_RUNS_PER_PAGE = 50
_ROWS_PER_PAGE = 1000  # W&B thins out longer pages
_ROWS_PER_WRITE = 500
_JSON = (str, int, float, bool, list, dict, type(None))


@dataclass(frozen=True)
class WandbProject:
    """The runs of a project, or of one group (a sweep) in it. An `Origin`."""

    entity: str
    project: str
    group: str | None = None
    connect: Callable[[], Any] = field(default=lambda: wandb_reader.connect(), repr=False)
    cache_root: Path | None = None
    pace: Pace = field(default_factory=Pace, repr=False)

    @property
    def name(self) -> str:
        return f"wandb:{self._path}" + (f"/{self.group}" if self.group else "")

    def rows(self) -> list[Row]:
        api = self.connect()
        cache = self._cache(api)
        copies = [self._copy(run, cache) for run in self._runs(api, lazy=cache.holds_any())]
        rows = [row_of_copy(copy, source=self.name) for copy in copies]
        keys = {key for copy in copies for key in copy.summary if not key.startswith("_")}
        refuse_foreign(rows, self.name, sorted(keys))
        return rows

    def histories(self, runs: Collection[str] | None) -> Iterator[tuple[str, list[Row]]]:
        api = self.connect()
        cache = self._cache(api)
        for run in self._runs(api, lazy=cache.holds_any()):
            if runs is None or run.id in runs:
                yield run.id, [history_row(row) for row in self._history(run, cache)]

    @property
    def _path(self) -> str:
        return f"{self.entity}/{self.project}"

    def _cache(self, api: Any) -> RunCache:
        settings = getattr(api, "settings", None) or {}
        return RunCache.of(settings.get("base_url", ""), self.entity, self.project, self.cache_root)

    def _runs(self, api: Any, *, lazy: bool) -> Iterator[Any]:
        """Every run of the project or group. TableError where there is none.

        By index and not by `next`, which leaves out a run when a page had to be asked for again.
        """
        listing = self.pace.ask(f"the runs of {self._path}", lambda: self._listing(api, lazy=lazy))
        found = False
        for run in self._listed(listing):
            if self.group is None or run.group == self.group:
                found = True
                yield run
        if not found:
            where = f"group {self.group} of {self._path}" if self.group else self._path
            raise TableError(
                f"W&B has no runs in {where}; check entity, project and group (a group is the name "
                "of a sweep), and that the runs were sent: `wandb sync` sends offline ones."
            )

    def _listing(self, api: Any, *, lazy: bool) -> Any:
        """lazy: without summaries and configs, which are asked for run by run where needed."""
        filters = {"group": self.group} if self.group else {}
        return api.runs(self._path, filters=filters, per_page=_RUNS_PER_PAGE, lazy=lazy)

    def _listed(self, listing: Any) -> Iterator[Any]:
        index = 0
        while True:
            try:
                if index % _RUNS_PER_PAGE:  # a page that is there already
                    yield listing[index]
                else:
                    yield self.pace.ask(f"the runs of {self._path}", lambda i=index: listing[i])
            except IndexError:
                return
            index += 1

    def _copy(self, run: Any, cache: RunCache) -> Copied:
        kept = cache.copy(run.id)
        if kept is not None:
            return kept
        copy = self.pace.ask(f"run {run.id} of {self._path}", lambda: _copied(run))
        cache.keep(copy)
        return copy

    def _history(self, run: Any, cache: RunCache) -> list[Row]:
        """All logged rows: those on disk, and from W&B those after them."""
        rows, complete = cache.history(run.id)
        if complete:
            return rows
        ended = self._copy(run, cache).is_final  # before its rows: they are all there then
        attempt = 0
        while True:
            fresh: list[Row] = []
            try:
                self.pace.wait()
                for row in run.scan_history(page_size=_ROWS_PER_PAGE, min_step=_after(rows)):
                    fresh.append(_json_row(row))
                    if len(fresh) >= _ROWS_PER_WRITE:
                        _keep(cache, run.id, rows, fresh)
                        attempt = 0
                break
            except TableError:
                raise
            except Exception as error:  # a foreign library's; what came before it is kept
                self.pace.after(f"the history of run {run.id}", error, attempt)
                attempt += 1
            finally:  # of an interrupt too
                _keep(cache, run.id, rows, fresh)
        cache.add_history(run.id, [], complete=ended)
        return rows


def _copied(run: Any) -> Copied:
    return Copied(
        run.id, run.group or "", run.state, _json_row(dict(run.summary)), _json_row(run.config)
    )


def _json_row(values: Mapping[str, Any]) -> dict[str, Any]:
    """What can be written as JSON; wandb wraps nested values in objects of its own."""
    return {name: plain(value) for name, value in values.items() if isinstance(value, _JSON)}


def _keep(cache: RunCache, run_id: str, rows: list[Row], fresh: list[Row]) -> None:
    """Move `fresh` to `rows` and to the disk."""
    cache.add_history(run_id, fresh)
    rows += fresh
    fresh.clear()


def _after(rows: list[Row]) -> int:
    return rows[-1].get("_step", rows[-1].get("step", -1)) + 1 if rows else 0
