"""What a report's fits.json says of the runs behind its fits: cautions, data, recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.planning import text
from analysis.planning.stored import provenance_number, read_content

_SHORT = {
    "one_seed": "all runs share one seed, whose error no interval holds.",
    "repeated_tokens": "some runs saw their data more than once, and D counts the repeats.",
    "other_flops": "the runs decode twice: they cost more FLOPs than are counted here.",
    "train_heldout_gap": "held-out loss lies above training loss; more data may change the law.",
}
"""Codes of study/run_cautions.py in a few words; the page of the report says each in full."""


@dataclass(frozen=True)
class Context:
    """Of the runs fitted. Empty where the file does not say it: a single fit has no cautions."""

    cautions: Mapping[str, str] = field(default_factory=dict)  # code -> message
    recipe: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # column -> values
    data_tokens: int | None = None  # distinct training vectors that the runs drew from

    def lines(self, tokens: Sequence[float]) -> Iterator[str]:
        """The cautions, a line each, and how often the largest of `tokens` repeats the data."""
        for code, message in self.cautions.items():
            yield f"caution {code}: {_SHORT.get(code, message)}"
        most = max(tokens, default=0.0)
        if self.data_tokens is not None and most > self.data_tokens:
            yield (
                f"data: the runs fitted drew from {text.tokens(self.data_tokens)} tokens; "
                f"{text.tokens(most)} tokens of them are {most / self.data_tokens:.3g} epochs."
            )


def read_context(path: Path) -> Context:
    """TableError where the file holds no JSON object, or its data_tokens are no list of numbers."""
    content = read_content(path)
    provenance = _mapping(content.get("provenance"))
    return Context(
        cautions={code: str(said) for code, said in _mapping(content.get("cautions")).items()},
        recipe={c: v for c, v in _mapping(provenance.get("recipe")).items() if isinstance(v, list)},
        data_tokens=provenance_number(path, content, "data_tokens"),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
