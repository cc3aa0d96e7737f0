"""Which keys the runs of a sweep differ in beside their sizes, from the plans beside their records.

plan.json holds the whole configuration as it was asked for (`config`) and every number as it was
settled (`identity`). Keys are compared as asked for: one key then differs where a learning rate
that follows from it would differ too. Runs without a plan, such as lines of a table, are compared
by what their records tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.records.mixtures import RECIPE
from analysis.records.plan_file import read_plan

SIZES = frozenset(
    {
        *("autoencoder.n_latents", "autoencoder.k", "autoencoder.penalty"),
        *("autoencoder.target_l0", "train.tokens", "train.flops", "train.seed"),
    }
)
"""Keys that make another point of the same experiment."""
RATES = ("train.lr", "train.lr_scale")
"""Tuned for each level of another key: levels are compared at their best rates."""
PUBLISHED: dict[str, Any] = {
    **{"autoencoder.dead_treatment": "auxk", "autoencoder.b_pre_init": "geometric_median"},
    **{"autoencoder.encoder_init": "tied", "autoencoder.scale_encoder": True},
    **{"autoencoder.b_enc": True, "autoencoder.decoder_norm": True},
    **{"autoencoder.gradient_projection": True, "train.lr_rule": "inverse_sqrt_n"},
    **{"train.lr_scale": 1.0, "train.adam_eps": 6.25e-10, "train.ema_decay": 0.999},
}
"""As TopK autoencoders were published (Gao et al. 2024): the usual level, where runs do not say."""
_SECTIONS = ("autoencoder", "train", "numerics")
_IN_RECORDS = {
    **RECIPE,
    **{"batch_tokens": "train.batch_tokens", "lr": "train.lr"},
}
"""Columns of records that are keys; a rate that follows from the batch comes after it."""

Settings = dict[str, str]
"""Full name of a key -> its value as JSON."""


def settings_of(rows: pd.DataFrame) -> list[Settings]:
    """The keys of each run, without its sizes: from plans where every run has one."""
    plans = [read_plan(str(folder)) for folder in rows["folder"]]
    if not all(isinstance(plan.get("config"), dict) for plan in plans):
        return _from_records(rows)
    return [{key: v for key, v in _of_plan(plan) if key not in SIZES} for plan in plans]


def _of_plan(plan: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A null asked for stands for what it was settled to, where that has the same name."""
    settled = plan.get("identity")
    settled = settled if isinstance(settled, dict) else {}
    for section in _SECTIONS:
        chosen = dict(_flat(settled.get(section), section))
        for key, value in _flat(plan["config"].get(section), section):
            follows = value is None and key != "train.lr"
            yield key, json.dumps(chosen.get(key) if follows else value)


def _flat(values: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(values, dict):
        return
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


def _from_records(rows: pd.DataFrame) -> list[Settings]:
    columns = {column: key for column, key in _IN_RECORDS.items() if column in rows}
    lines = zip(*(rows[column].tolist() for column in columns), strict=True) if columns else []
    found = [dict(zip(columns.values(), map(_as_json, line), strict=True)) for line in lines]
    return found or [{} for _ in range(len(rows))]


def _as_json(value: Any) -> str:
    known = value is not None and value == value  # no NaN, which pandas puts for null
    number = isinstance(value, float) and known
    # A rate is a product of powers: equal ones may differ in their last digits.
    return json.dumps(float(f"{value:.9g}") if number else value if known else None)


def differing(settings: Sequence[Settings], cells: Sequence[Any]) -> list[str]:
    """Keys of which some cell has several values, in the order of the settings.

    A key that only some of the runs of a cell have says nothing: they are of different versions.
    """
    by_cell: dict[Any, list[Settings]] = {}
    for one, cell in zip(settings, cells, strict=True):
        by_cell.setdefault(cell, []).append(one)
    keys = dict.fromkeys(key for one in settings for key in one)
    return [key for key in keys if any(_several(key, group) for group in by_cell.values())]


def _several(key: str, group: Sequence[Settings]) -> bool:
    return all(key in one for one in group) and len({one[key] for one in group}) > 1
