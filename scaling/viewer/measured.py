"""On what text the numbers of a run's evaluation were measured, in words for its pages.

A metric may take more contexts than the others, a sample of their tokens, or texts of its own; and
an evaluation may have had other settings than the pages that show it. Numbers so measured differ
by that alone, so each group of them says it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scaling.runs.evaluation_columns import baselines_in, standard_errors_of

_TOKENS = {"n_tokens_tested": "tested token", "n_vectors": "token", "n_tokens": "token"}
"""Notes of metrics that count what the numbers are means over; the first that is there."""


@dataclass(frozen=True)
class Pages:
    """What the pages themselves are made from."""

    contexts: int
    is_all: bool
    """Whether the text has no more contexts."""
    settings: Mapping[str, Any]
    """Keys of evaluations that bear on numbers, with their values here."""


@dataclass(frozen=True)
class Measured:
    """A metric of the run's evaluation, measured on the weights that the pages show."""

    metric: str
    numbers: Mapping[str, Any]
    contexts: str
    """How many, with the word."""
    on: str
    """The same with tokens, and with the settings that are not those of the pages."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """Standard errors of the numbers that have one."""
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Of a number: what it is to be compared with."""


def measured(
    metric: str, numbers: Mapping[str, Any], entry: Mapping[str, Any], pages: Pages
) -> Measured:
    """From what evaluation.json has of a metric."""
    contexts, notes = _contexts(entry, pages), _mapping(entry, "notes")
    counts = [
        counted(count, word)
        for key, word in _TOKENS.items()
        if (count := _count(notes.get(key))) is not None
    ]
    on = " of ".join([*counts[:1], contexts])
    on = ", ".join([on, *_other_settings(entry, pages)])
    return Measured(metric, numbers, contexts, on, standard_errors_of(entry), baselines_in(entry))


def _contexts(entry: Mapping[str, Any], pages: Pages) -> str:
    settings, notes = _mapping(entry, "settings"), _mapping(entry, "notes")
    if "tasks" in settings:
        return f"texts of {counted(len(_mapping(notes, 'tasks')), 'task')}"
    if (exact := _count(notes.get("n_contexts"))) is not None:
        return counted(exact, "context")
    asked = _count(settings.get("contexts", entry.get("contexts")))
    if asked is None:
        return "contexts that it does not say"
    if asked <= pages.contexts:
        return counted(asked, "context")
    # More than the pages have: then it had all there are, or nobody knows here how many.
    if pages.is_all:
        return counted(pages.contexts, "context")
    return f"up to {counted(asked, 'context')}"


def _other_settings(entry: Mapping[str, Any], pages: Pages) -> list[str]:
    """Old evaluations do not say all of them."""
    return [
        f"{key}={entry[key]} (these pages: {here})"
        for key, here in pages.settings.items()
        if key in entry and entry[key] != here
    ]


def counted(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _count(value: Any) -> int | None:
    return value if type(value) is int else None


def _mapping(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    # Of another version, or edited: then it says less.
    return found if isinstance(found := entry.get(key), dict) else {}
