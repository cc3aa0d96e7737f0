"""This package's own export: config.json and weights.safetensors, in the names of training."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from scaling.errors import UserError
from scaling.interchange import ours
from scaling.interchange.files import Tensors, read_safetensors
from scaling.interchange.normalization import KINDS
from scaling.interchange.portable import Portable
from scaling.interchange.settings import Settings

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
SCHEMA_VERSION = 1
_MEANT = ("d_model", "n_latents", "k", "architecture", "normalization")


def read(folder: Path) -> Portable:
    """An export of `python -m scaling.export`. Raises `UserError`."""
    config = Settings.read(folder / CONFIG)
    version = config.values.get("schema_version")
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{config.path}: schema_version={version!r} is unknown here (this is "
            f"{SCHEMA_VERSION}): it was exported by a newer version; use that one."
        )
    architecture = config.one_of("architecture", ours.known(), "topk")
    n_latents, d_model = config.whole("n_latents"), config.whole("d_model")
    stored = read_safetensors(folder / WEIGHTS)
    weights = {
        name: _take(stored, architecture, name, n_latents, d_model)
        for name in ours.tensor_names(architecture)
    }
    stored.refuse_rest("native")
    made = ours.portable(
        architecture,
        weights,
        k=None if config.values.get("k") is None else config.whole("k"),
        normalization=config.one_of("normalization", KINDS, ""),
        facts={key: value for key, value in config.values.items() if key not in _MEANT},
    )
    if made.kind == "topk" and (made.k is None or made.k > n_latents):
        raise UserError(f"{config.path}: k={made.k} must lie in 1..n_latents={n_latents}.")
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
