"""What evaluations kept of single latents beside the run's numbers, where they did.

    density.npz    frequency, importance, position   float [N]
                   layout                            float [N, 2]
    ablation.npz   latent, sparsity, l2              of single ablations, [A]
    n2g.json       LATENT to its patterns, their precision and recall

in the run's folder `evaluation`. Absent files are no fault, and those of metrics measured on other
weights are not for these pages: they do without.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scaling.errors import UserError
from scaling.storage.atomic import read_json
from scaling.viewer.activity import Array
from scaling.viewer.look import Column, Known
from scaling.viewer.measured import Measured

_DENSITY = {
    "frequency": (
        "frequency, evaluated",
        "Share of the vectors evaluated with it active.",
    ),
    "importance": ("importance", "Rise of normalized MSE if it alone were 0."),
    "position": ("position bits", "What a firing tells about the position in the context."),
}
_ABLATION = {
    "sparsity": ("ablation sparsity", "Of its effect on logits: 0 = one logit, 0.64 = Gaussian."),
    "l2": ("ablation effect", "L2 of the centred change of logits if it is 0 at a token."),
}
_N2G = {
    "precision": ("N2G precision", "Of the tokens its patterns match, the share it is active at."),
    "recall": ("N2G recall", "Of the tokens it is active at, the share its patterns match."),
}


FILES = {"density": "density.npz", "ablation": "ablation.npz", "explain": "n2g.json"}
"""Of each metric what it keeps."""

_DAMAGED = (
    *(AttributeError, EOFError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What reading raises of a file that is not as it was written."""


def read_known(folder: Path, n_latents: int, metrics: Mapping[str, Measured]) -> Known:
    """What `metrics` kept of a run in its folder `evaluation`.

    Raises:
        UserError: a file is damaged, or of another run.
    """
    paths = {metric: folder / name for metric, name in FILES.items()}
    there = {metric for metric in FILES if metric in metrics and paths[metric].exists()}
    try:
        n2g = _n2g(paths["explain"]) if "explain" in there else {}
        density = _arrays(paths["density"]) if "density" in there else {}
        ablation = _arrays(paths["ablation"]) if "ablation" in there else {}
        columns = [
            *_said(metrics.get("density"), _density(density, n_latents)),
            *_said(metrics.get("ablation"), _ablation(ablation, n_latents)),
            *_said(metrics.get("explain"), _explained(n2g, n_latents)),
        ]
        patterns = {latent: _patterns(latent, entry) for latent, entry in n2g.items()}
    except _DAMAGED as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{folder} holds what cannot be read ({error}): remove it to look at the run without, "
            "and evaluation.json beside it to have the run evaluated again."
        ) from error
    return Known(columns, patterns, density.get("layout"))


def _said(measured: Measured | None, columns: Sequence[Column]) -> list[Column]:
    """The columns of a metric with the text that they are of: not the one that the pages show."""
    if measured is None:
        return []
    return [
        replace(column, about=f"{column.about} Measured on {measured.on}.", on=measured.contexts)
        for column in columns
    ]


def _arrays(path: Path) -> dict[str, Array]:
    # numpy leaves a path that it cannot read open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _density(arrays: dict[str, Array], n_latents: int) -> list[Column]:
    for name, array in arrays.items():
        shape = (n_latents, 2) if name == "layout" else (n_latents,)
        if name in (*_DENSITY, "layout") and array.shape != shape:
            raise ValueError(f"density.npz: {name} is {list(array.shape)}, not {list(shape)}")
        if name in (*_DENSITY, "layout") and not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"density.npz: {name} is {array.dtype}")
    return [
        Column(name, label, about, arrays[name])
        for name, (label, about) in _DENSITY.items()
        if name in arrays
    ]


def _ablation(arrays: dict[str, Array], n_latents: int) -> list[Column]:
    """Means over the ablations of each latent that has some."""
    made = []
    for name, (label, about) in _ABLATION.items() if arrays else ():
        defined_A = ~np.isnan(arrays[name])
        latent_A, value_A = arrays["latent"][defined_A], arrays[name][defined_A].astype(np.float64)
        if len(latent_A) and not 0 <= latent_A.min() <= latent_A.max() < n_latents:
            raise ValueError(f"ablation.npz: latents to {latent_A.max()} of {n_latents}")
        count_N = np.bincount(latent_A, minlength=n_latents)
        sum_N = np.bincount(latent_A, value_A, n_latents)
        mean_N = np.where(count_N, sum_N / np.maximum(count_N, 1), np.nan)
        made.append(Column(f"ablation_{name}", label, f"{about} Mean of its ablations.", mean_N))
    return made


def _n2g(path: Path) -> dict[int, dict[str, Any]]:
    return {int(key): entry for key, entry in read_json(path).items()}


def _patterns(latent: int, entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of a latent, such as pages can show."""
    for one in (patterns := entry["patterns"]):
        if not all(token is None or isinstance(token, int) for token in one["tokens"]):
            raise ValueError(f"n2g.json: tokens of latent {latent} are {one['tokens']}")
        if not math.isfinite(one["value"]):
            raise ValueError(f"n2g.json: a value of latent {latent} is {one['value']}")
    return list(patterns)


def _explained(n2g: dict[int, dict[str, Any]], n_latents: int) -> Sequence[Column]:
    made = []
    for name, (label, about) in _N2G.items() if n2g else ():
        values_N = np.full(n_latents, np.nan)
        for latent, entry in n2g.items():
            if latent < 0:
                raise ValueError(f"n2g.json: there is no latent {latent}")
            if entry.get(name) is not None:
                values_N[latent] = entry[name]
        made.append(Column(f"n2g_{name}", label, about, values_N))
    return made
