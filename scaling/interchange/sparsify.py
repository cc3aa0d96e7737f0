"""Folders of the eai-sparsify library: cfg.json and sae.safetensors. TopK only.

    encoder.weight [N, D]   encoder.bias [N]   W_dec [N, D]   b_dec [D]

There, activations are taken as they are: the format has no normalization. An autoencoder that was
trained on normalized ones is written only where the caller says that it will be given such; our own
reader finds in cfg.json (`sae_scaling`, which the library ignores) what they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scaling.errors import UserError
from scaling.interchange.files import (
    read_json_object,
    read_safetensors,
    whole,
)
from scaling.interchange.normalization import KINDS
from scaling.interchange.portable import Portable
from scaling.storage.atomic import write_json
from scaling.train.tensor_file import write_tensor_file

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"


def read(folder: Path) -> Portable:
    """Raises `UserError` for what is damaged, or would be read as something else."""
    path = folder / CONFIG
    config = read_json_object(path)
    _check(config, path)
    d_model = whole(config, "d_in", path)
    n_latents = config.get("num_latents") or d_model * whole(config, "expansion_factor", path)
    k = whole(config, "k", path)
    stored = read_safetensors(folder / WEIGHTS)
    weights = {
        "w_enc": stored.take("encoder.weight", n_latents, d_model),
        "w_dec": stored.take("W_dec", n_latents, d_model),
        "b_enc": stored.take("encoder.bias", n_latents),
        "b_pre": stored.take("b_dec", d_model),
    }
    stored.refuse_rest("sparsify")
    if k > n_latents:
        raise UserError(f"{path}: k={k} is more than num_latents={n_latents}.")
    facts = config.get("sae_scaling", {})
    normalization = _normalization(facts, path)
    return Portable(
        kind="topk",
        weights=weights,
        k=k,
        normalization=normalization,
        architecture=str(facts.get("architecture", "topk")),
        facts=facts,
    )


def _check(config: dict[str, Any], path: Path) -> None:
    if config.get("activation", "topk") != "topk":
        raise UserError(
            f"{path}: activation={config['activation']!r} cannot be read here: topk can."
        )
    for key in ("transcode", "skip_connection"):
        if config.get(key, False):
            raise UserError(
                f"{path}: {key}=true: it predicts another place's activations than it reads, or "
                "adds a linear map of them. Only autoencoders can be read."
            )


def _normalization(facts: Any, path: Path) -> str:
    if not isinstance(facts, dict):
        raise UserError(f"{path}: sae_scaling must be an object.")
    name = facts.get("normalization", "none")
    if name not in KINDS:
        raise UserError(f"{path}: sae_scaling.normalization={name!r} is not one of {KINDS}.")
    return name


def write(portable: Portable, folder: Path, *, normalized_inputs: bool = False) -> None:
    """Write the folder's two files.

    Raises:
        UserError: not of kind topk, or of normalized activations without `normalized_inputs`.
    """
    if portable.kind != "topk":
        raise UserError(
            f"--format sparsify holds TopK autoencoders alone, with one k, and this is "
            f"{portable.architecture}: --format sae_lens or native."
        )
    if portable.normalization != "none" and not normalized_inputs:
        raise UserError(
            "--format sparsify has no place for normalization, and this autoencoder was trained "
            f"with activations.normalization={portable.normalization}: the library would give it "
            "raw activations. --format sae_lens keeps it; or say --normalized-inputs if you will "
            "normalize activations before the library sees them (docs/interchange.md)."
        )
    names = {"w_enc": "encoder.weight", "b_enc": "encoder.bias", "w_dec": "W_dec", "b_pre": "b_dec"}
    write_tensor_file(
        folder / WEIGHTS, {theirs: portable.weights[ours] for ours, theirs in names.items()}
    )
    config = {
        "activation": "topk",
        "expansion_factor": max(1, portable.n_latents // portable.d_model),
        "normalize_decoder": True,
        "num_latents": portable.n_latents,
        "k": portable.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": portable.d_model,
        "sae_scaling": {
            **portable.facts,
            "architecture": portable.architecture,
            "normalization": portable.normalization,
        },
    }
    write_json(folder / CONFIG, config)
