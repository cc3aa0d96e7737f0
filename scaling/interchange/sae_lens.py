"""Folders of the sae-lens library: cfg.json and sae_weights.safetensors.

    W_enc [D, N]   W_dec [N, D]   b_enc [N]   b_dec [D]        (written by 6.x; older cfg.json read)

| architecture there | kind here | tensors besides, and what differs |
|---|---|---|
| standard | relu | |
| topk | topk | `k`; `rescale_acts_by_decoder_norm` is folded into the weights |
| jumprelu | jumprelu | `threshold` [N]; theirs of batch and nested training are saved so too |
| gated | gated | `b_gate` is our b_enc; `r_mag`, `b_mag` |

`normalize_activations`: none, layer_norm (our std), constant_norm_rescale (our constant_norm).
`apply_b_dec_to_input=false` is folded into the encoder's biases.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaling.errors import UserError
from scaling.interchange.files import Tensors, read_safetensors
from scaling.interchange.folds import (
    for_std_inputs,
    with_decoder_norms_in_latents,
    with_input_bias,
)
from scaling.interchange.portable import KINDS, Portable
from scaling.interchange.settings import Settings
from scaling.storage.atomic import write_json
from scaling.train.tensor_file import write_tensor_file

WEIGHTS, CONFIG = "sae_weights.safetensors", "cfg.json"
_VERSION = "6.0.0"
"""Stated as the writer's: older ones make the library read cfg.json in its old way."""

_KIND = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
_NORMALIZATION = {"none": "none", "layer_norm": "std", "constant_norm_rescale": "constant_norm"}
_OLD_KEYS = {"activation_fn_str": "activation_fn", "hook_point": "hook_name"}


def read(folder: Path) -> Portable:
    """Raises `UserError` for what is damaged, or would be read as something else."""
    config = _modern(Settings.read(folder / CONFIG))
    kind = _kind(config)
    normalization = _NORMALIZATION[
        config.one_of("normalize_activations", _NORMALIZATION, "none", _NO_FACTOR)
    ]
    d_sae, d_in = config.whole("d_sae"), config.whole("d_in")
    k = config.whole("k") if kind == "topk" else None
    if k and k > d_sae:
        raise UserError(f"{config.path}: k={k} is more than d_sae={d_sae}.")
    weights = _weights(read_safetensors(folder / WEIGHTS), kind, d_sae, d_in)
    if kind == "topk" and config.flag("rescale_acts_by_decoder_norm", False):
        weights = with_decoder_norms_in_latents(weights)
    if not config.flag("apply_b_dec_to_input", True):
        weights = with_input_bias(weights)
    metadata = config.mapping("metadata")
    ours = Settings(config.path, metadata).mapping("sae_scaling")
    return Portable(
        kind=kind,
        weights=weights,
        k=k,
        normalization=normalization,
        architecture=str(ours.get("architecture", config.values["architecture"])),
        facts=metadata,
    )


_NO_FACTOR = (
    "what it scales by is not in the folder. Fold it into the weights with sae-lens "
    "(fold_activation_norm_scaling_factor or fold_activation_whitening) and save again."
)


def _modern(config: Settings) -> Settings:
    """cfg.json of before 6.0 in today's keys."""
    new = {_OLD_KEYS.get(key, key): value for key, value in config.values.items()}
    if "metadata" in new:
        return Settings(config.path, new)
    more = config.mapping("activation_fn_kwargs")
    if new.get("activation_fn") == "topk" and "k" in more:
        new |= {"architecture": "topk", "k": more["k"]}
    # A flag then meant the scaling that has its own name now.
    given = new.get("normalize_activations") or "none"
    scaled = "expected_average_only_in" if given is True else given
    hooked = "hook_z" if "hook_z" in str(new.get("hook_name")) else "none"
    new = {"architecture": "standard", "reshape_activations": hooked, **new}
    metadata = {key: new[key] for key in _OLD_METADATA if key in new}
    return Settings(config.path, {**new, "normalize_activations": scaled, "metadata": metadata})


_OLD_METADATA = ("model_name", "hook_name", "context_size", "prepend_bos", "dataset_path")


def _kind(config: Settings) -> str:
    architecture = config.one_of("architecture", _KIND, "")
    config.one_of("activation_fn", ("relu", "topk"), "relu")
    config.one_of(
        "reshape_activations",
        ("none",),
        "none",
        "it takes outputs of attention heads, [heads, d_head] per token, which is not supported.",
    )
    return _KIND[architecture]


def _weights(stored: Tensors, kind: str, n: int, d: int) -> dict[str, Tensor]:
    """In our names and orientation."""
    if kind == "jumprelu" and "log_threshold" in stored.values:
        stored.values["threshold"] = stored.take("log_threshold", n).exp()
    weights = {
        "w_enc": stored.take("W_enc", d, n).T.contiguous(),
        "w_dec": stored.take("W_dec", n, d),
        "b_enc": stored.take("b_gate" if kind == "gated" else "b_enc", n),
        "b_pre": stored.take("b_dec", d),
        **{name: stored.take(name, n) for name in KINDS[kind]},
    }
    _drop_scaling_of_one(stored)
    stored.refuse_rest("sae_lens")
    return weights


def _drop_scaling_of_one(stored: Tensors) -> None:
    """Old folders have a factor per latent that is 1 unless it was fine-tuned."""
    factor = stored.values.get("scaling_factor")
    if isinstance(factor, Tensor) and torch.equal(factor, torch.ones_like(factor)):
        del stored.values["scaling_factor"]


def write(portable: Portable, folder: Path) -> None:
    """Write the folder's two files. Any kind can be held; of unit_norm, see `for_std_inputs`."""
    trained_on = portable.normalization
    if trained_on == "unit_norm":
        portable = for_std_inputs(portable)
    to_theirs = {ours: theirs for theirs, ours in _NORMALIZATION.items()}
    weights = portable.weights
    tensors = {
        "W_enc": weights["w_enc"].T,
        "W_dec": weights["w_dec"],
        "b_gate" if portable.kind == "gated" else "b_enc": weights["b_enc"],
        "b_dec": weights["b_pre"],
        **{name: weights[name] for name in KINDS[portable.kind]},
    }
    write_tensor_file(folder / WEIGHTS, tensors)
    config = {
        "architecture": {ours: theirs for theirs, ours in _KIND.items()}[portable.kind],
        "d_in": portable.d_model,
        "d_sae": portable.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": to_theirs[portable.normalization],
        "reshape_activations": "none",
        "metadata": _metadata(portable, trained_on),
    }
    if portable.kind == "topk":
        config |= {"k": portable.k, "rescale_acts_by_decoder_norm": False}
    write_json(folder / CONFIG, config)


def _metadata(portable: Portable, trained_on: str) -> dict[str, Any]:
    """Where the library attaches it to a model, and what we know besides."""
    data = portable.facts.get("activations", {})
    where: dict[str, Any] = {}
    if data.get("layer"):
        where = {
            "model_name": data.get("subject_model"),
            "hook_name": f"blocks.{data['layer'] - 1}.hook_resid_post",
            "context_size": data.get("context"),
            "prepend_bos": False,
        }
    return {
        "sae_lens_version": _VERSION,
        "sae_lens_training_version": None,
        **where,
        "sae_scaling": {
            "architecture": portable.architecture,
            "trained_on": trained_on,
            **portable.facts,
        },
    }
