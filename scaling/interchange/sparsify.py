"""Folders of the eai-sparsify library: cfg.json and sae.safetensors. TopK only.

    encoder.weight [N, D]   encoder.bias [N]   W_dec [N, D]   b_dec [D]

There, activations are taken as they are: the format has no normalization. An autoencoder that was
trained on normalized ones is written only where the caller says that it will be given such; our own
reader finds in cfg.json (`sae_scaling`, which the library ignores) what they are.
"""

from __future__ import annotations

from pathlib import Path

from scaling.errors import UserError
from scaling.interchange.files import read_safetensors
from scaling.interchange.normalization import KINDS
from scaling.interchange.portable import Portable
from scaling.interchange.settings import Settings
from scaling.storage.atomic import write_json
from scaling.train.tensor_file import write_tensor_file

WEIGHTS, CONFIG = "sae.safetensors", "cfg.json"


def read(folder: Path) -> Portable:
    """Raises `UserError` for what is damaged, or would be read as something else."""
    config = Settings.read(folder / CONFIG)
    _check(config)
    d_model, k = config.whole("d_in"), config.whole("k")
    by_factor = config.values.get("num_latents", 0) == 0
    n_latents = (
        d_model * config.whole("expansion_factor") if by_factor else config.whole("num_latents")
    )
    if k > n_latents:
        raise UserError(f"{config.path}: k={k} is more than num_latents={n_latents}.")
    facts = Settings(config.path, config.mapping("sae_scaling"))
    normalization = facts.one_of("normalization", KINDS, "none")
    stored = read_safetensors(folder / WEIGHTS)
    weights = {
        "w_enc": stored.take("encoder.weight", n_latents, d_model),
        "w_dec": stored.take("W_dec", n_latents, d_model),
        "b_enc": stored.take("encoder.bias", n_latents),
        "b_pre": stored.take("b_dec", d_model),
    }
    stored.refuse_rest("sparsify")
    return Portable(
        kind="topk",
        weights=weights,
        k=k,
        normalization=normalization,
        architecture=str(facts.values.get("architecture", "topk")),
        facts=facts.values,
    )


def _check(config: Settings) -> None:
    config.one_of("activation", ["topk"], "topk")
    for key in ("transcode", "skip_connection"):
        if config.flag(key, False):
            raise UserError(
                f"{config.path}: {key}=true: it predicts another place's activations than it "
                "reads, or adds a linear map of them. Only autoencoders can be read."
            )


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
