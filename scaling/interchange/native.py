"""This package's own export: config.json and weights.safetensors, in the names of training."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from scaling.errors import UserError
from scaling.interchange import ours
from scaling.interchange.files import Tensors, read_json_object, read_safetensors, whole
from scaling.interchange.normalization import KINDS
from scaling.interchange.portable import Portable

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
SCHEMA_VERSION = 1
_MEANT = ("d_model", "n_latents", "k", "architecture", "normalization")


def read(folder: Path) -> Portable:
    """An export of `python -m scaling.export`. Raises `UserError`."""
    path = folder / CONFIG
    config = read_json_object(path)
    if config.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema_version={config.get('schema_version')!r} is unknown here (this is "
            f"{SCHEMA_VERSION}): it was exported by a newer version; use that one."
        )
    architecture, normalization = str(config.get("architecture")), config.get("normalization")
    if normalization not in KINDS:
        raise UserError(f"{path}: normalization={normalization!r} is not one of {KINDS}.")
    names = ours.tensor_names(architecture)
    stored = read_safetensors(folder / WEIGHTS)
    n_latents, d_model = whole(config, "n_latents", path), whole(config, "d_model", path)
    weights = {name: _take(stored, architecture, name, n_latents, d_model) for name in names}
    stored.refuse_rest("native")
    made = ours.portable(
        architecture,
        weights,
        k=None if config.get("k") is None else whole(config, "k", path),
        normalization=normalization,
        facts={key: value for key, value in config.items() if key not in _MEANT},
    )
    if made.kind == "topk" and (made.k is None or made.k > n_latents):
        raise UserError(f"{path}: k={made.k} must lie in 1..n_latents={n_latents}.")
    return made


def _take(stored: Tensors, architecture: str, name: str, n_latents: int, d_model: int) -> Tensor:
    if ours.is_statistic(architecture, name):
        return stored.take(name)
    match name:
        case "w_enc" | "w_dec":
            return stored.take(name, n_latents, d_model)
        case "b_pre":
            return stored.take(name, d_model)
    return stored.take(name, n_latents)
