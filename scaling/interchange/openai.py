"""State dicts as OpenAI's sparse_autoencoder released them (with Gao et al. 2024): one `.pt` file.

    encoder.weight [N, D]   decoder.weight [D, N]   latent_bias [N]   pre_bias [D]
    activation: "TopK" or "ReLU"     activation_state_dict: {k, postact_fn: "ReLU"} of TopK, which
                                     the released code also saves as activation.k, .postact_fn
    stats_last_nonzero, latents_activation_frequency, latents_mean_square [N]: statistics

Whether activations are normalized follows from the activation there: TopK takes them through
`std` (normalization.py), ReLU as they are. Nothing else can be said in this layout. A tied decoder
has the encoder's matrix as `decoder.linear.weight`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scaling.errors import UserError
from scaling.interchange.files import Tensors, read_pickled
from scaling.interchange.folds import for_std_inputs
from scaling.interchange.portable import Portable
from scaling.storage.atomic import write_json

WEIGHTS, FACTS = "autoencoder.pt", "facts.json"
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_NORMALIZATION = {"topk": "std", "relu": "none"}


def read(path: Path) -> Portable:
    """Of a `.pt` file. Raises `UserError` for what is damaged, unsafe, or of another layout."""
    stored = read_pickled(path)
    activation = stored.values.pop("activation", "ReLU")
    state = _activation_state(stored)
    w_enc_ND = stored.take("encoder.weight", None, None)
    n_latents, d_model = w_enc_ND.shape
    tied = "decoder.linear.weight" in stored.values
    weights = {
        "w_enc": w_enc_ND,
        "w_dec": stored.take("decoder.linear.weight", n_latents, d_model)
        if tied
        else stored.take("decoder.weight", d_model, n_latents).T.contiguous(),
        "b_enc": stored.take("latent_bias", n_latents),
        "b_pre": stored.take("pre_bias", d_model),
    }
    stored.refuse_rest("openai", but=_STATISTICS)
    k = _k(stored, activation, state, n_latents)
    kind = "topk" if k else "relu"
    return Portable(
        kind=kind,
        weights=weights,
        k=k,
        normalization=_NORMALIZATION[kind],
        architecture=kind,
    )


def _activation_state(stored: Tensors) -> dict[str, Any]:
    """By either of its names."""
    nested = stored.values.pop("activation_state_dict", {})
    flat = {
        name: stored.values.pop(f"activation.{name}")
        for name in ("k", "postact_fn")
        if f"activation.{name}" in stored.values
    }
    return {**flat, **(nested if isinstance(nested, dict) else {})}


def _k(stored: Tensors, activation: Any, state: dict[str, Any], n_latents: int) -> int | None:
    """Of TopK; None of ReLU."""
    if activation == "ReLU":
        return None
    if activation != "TopK":
        raise UserError(f"{stored.path}: activation={activation!r} cannot be read: TopK, ReLU can.")
    k, then = state.get("k"), state.get("postact_fn")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= n_latents:
        raise UserError(
            f"{stored.path}: activation_state_dict.k={k!r} must lie in 1..n_latents={n_latents}."
        )
    if then != "ReLU":
        raise UserError(
            f"{stored.path}: activation_state_dict.postact_fn={then!r}: latents that may be "
            "negative cannot be read; ReLU can."
        )
    return k


def write(portable: Portable, folder: Path) -> None:
    """Write `autoencoder.pt`, and beside it what is known of it.

    Raises:
        UserError: a kind or a normalization that the layout has no word for.
    """
    trained_on = portable.normalization
    if trained_on == "unit_norm" and portable.kind == "topk":
        portable = for_std_inputs(portable)
    if portable.kind not in _NORMALIZATION:
        raise UserError(
            f"--format openai holds TopK and ReLU autoencoders alone, and this is "
            f"{portable.architecture}: --format sae_lens or native."
        )
    implied = _NORMALIZATION[portable.kind]
    if portable.normalization != implied:
        raise UserError(
            f"--format openai says nothing of normalization: {portable.architecture} always goes "
            f"with {implied} there, and this run was trained with activations.normalization="
            f"{trained_on}: --format sae_lens or native keeps it."
        )
    _save(_state_dict(portable), folder / WEIGHTS)
    facts = {"architecture": portable.architecture, "trained_on": trained_on, **portable.facts}
    write_json(folder / FACTS, facts)


def _save(state: dict[str, Any], path: Path) -> None:
    """Raises `OSError` where the disk does, which torch's own words would cover up."""
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _state_dict(portable: Portable) -> dict[str, Any]:
    weights, n_latents = portable.weights, portable.n_latents
    topk = portable.kind == "topk"
    return {
        "pre_bias": weights["b_pre"],
        "latent_bias": weights["b_enc"],
        # Not kept by our training: as the released code has them before its first batch.
        "stats_last_nonzero": torch.zeros(n_latents, dtype=torch.long),
        "latents_activation_frequency": torch.ones(n_latents),
        "latents_mean_square": torch.zeros(n_latents),
        "encoder.weight": weights["w_enc"],
        "decoder.weight": weights["w_dec"].T.contiguous(),
        "activation": "TopK" if topk else "ReLU",
        "activation_state_dict": {"k": portable.k, "postact_fn": "ReLU"} if topk else {},
    }
