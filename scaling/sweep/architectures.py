"""From the keys of `autoencoder` to a settled plan, and the checks of these keys."""

from __future__ import annotations

import math
from typing import Any

from scaling import budget
from scaling.autoencoder_config import (
    AutoencoderConfig,
    BatchTopKConfig,
    GatedConfig,
    JumpReLUConfig,
    MatryoshkaConfig,
    MultiTopKConfig,
    PenalizedConfig,
    ProLUConfig,
    TopKConfig,
    k_of,
    name_of,
    widest_k,
)
from scaling.autoencoder_plan import AutoencoderPlan
from scaling.errors import UserError
from scaling.sweep.dead_latents import check_treatment, settled_resampling, settled_treatment
from scaling.sweep.ranges import at_least, positive, within


def plan_autoencoder(
    ae: AutoencoderConfig, d_model: int, steps: int, batch_tokens: int
) -> AutoencoderPlan:
    """Settle every number of an architecture that trains for `steps`."""
    treatment, aux_coef = settled_treatment(ae)
    return AutoencoderPlan(
        name=name_of(ae),
        n_latents=ae.n_latents,
        k=k_of(ae),
        k_aux=k_aux_of(ae, d_model),
        aux_coef=aux_coef,
        dead_after_tokens=ae.dead_after_tokens,
        b_pre_init=str(ae.b_pre_init),
        encoder_init=str(ae.encoder_init),
        scale_encoder=ae.scale_encoder,
        dead_treatment=str(treatment),
        b_enc=ae.b_enc,
        decoder_norm=ae.decoder_norm,
        gradient_projection=ae.gradient_projection,
        **settled_resampling(ae, steps, batch_tokens),
        options=_options(ae, steps),
    )


def _options(ae: AutoencoderConfig, steps: int) -> dict[str, Any]:
    if isinstance(ae, MultiTopKConfig):
        return {"wide_k": widest_k(ae), "wide_weight": ae.wide_weight}
    if isinstance(ae, MatryoshkaConfig):
        return {"prefixes": prefix_counts(ae)}
    if isinstance(ae, BatchTopKConfig):
        return {"threshold_decay": ae.threshold_decay}
    if not isinstance(ae, PenalizedConfig):
        return {}
    common = {"penalty": ae.penalty, "warmup_steps": warmup_steps(ae, steps)}
    if isinstance(ae, ProLUConfig):
        return {**common, "gradient": str(ae.gradient), "weighted_l1": ae.weighted_l1}
    if isinstance(ae, JumpReLUConfig):
        own = ("bandwidth", "initial_threshold", "target_l0")
        return {**common, **{key: getattr(ae, key) for key in own}}
    return common


def warmup_steps(ae: PenalizedConfig, steps: int) -> int:
    """Updates over which the weight of the penalty rises."""
    return round(ae.penalty_warmup * steps)


def prefix_counts(ae: MatryoshkaConfig) -> list[int]:
    """Latents of each nested dictionary: what is up to 1 is a share of all."""
    return [round(m * ae.n_latents) if m <= 1 else round(m) for m in ae.prefixes]


def k_aux_of(ae: AutoencoderConfig, d_model: int) -> int:
    """Dead latents that AuxK lets act: as given, or the power of two near half of d_model; 0 where
    there is no AuxK."""
    if not isinstance(ae, TopKConfig):
        return 0
    return budget.power_of_two_near(d_model / 2) if ae.k_aux is None else ae.k_aux


LARGEST_FACTOR, SMALLEST_FACTOR = 1e18, 1e-18
"""Of weights in a loss, and of widths that it is divided by: so that a step stays within float32.
What overflows would be kept as a run that diverged, and blamed on the architecture."""


def check_autoencoder(ae: AutoencoderConfig) -> None:
    """Check the keys of `autoencoder` against each other.

    Raises:
        UserError: naming the key, its value and the remedy.
    """
    _check_present("n_latents", ae.n_latents, "1024")
    at_least("autoencoder.n_latents", ae.n_latents, 1)
    at_least("autoencoder.dead_after_tokens", ae.dead_after_tokens, 1)
    if isinstance(ae, TopKConfig):
        _check_topk(ae)
    if isinstance(ae, MultiTopKConfig):
        at_least("autoencoder.wide_factor", ae.wide_factor, 1)
        _check_weight("autoencoder.wide_weight", ae.wide_weight)
    if isinstance(ae, MatryoshkaConfig):
        _check_prefixes(ae)
    if isinstance(ae, BatchTopKConfig):
        decay = ae.threshold_decay
        within("autoencoder.threshold_decay", decay, lambda v: 0 <= v < 1, "0 up to below 1")
    if isinstance(ae, PenalizedConfig):
        _check_penalized(ae)
    check_treatment(ae)
    if ae.gradient_projection and not ae.decoder_norm:
        raise UserError(
            "autoencoder.gradient_projection=true with autoencoder.decoder_norm=false: only where "
            "rows keep unit norm has the gradient along them no effect. Set "
            "autoencoder.gradient_projection=false."
        )


def _check_present(key: str, value: object, example: str) -> None:
    if not isinstance(value, int | float):
        raise UserError(
            f"autoencoder.{key} is not set. Give it on the command line, e.g. "
            f"autoencoder.{key}={example}."
        )


def _check_weight(key: str, value: float) -> None:
    at_least(key, value, 0)
    within(key, value, lambda v: v <= LARGEST_FACTOR, f"at most {LARGEST_FACTOR:.0e}")


def _check_width(key: str, value: float | None) -> None:
    positive(key, value)
    if value is not None:
        allowed = f"{SMALLEST_FACTOR:.0e} to {LARGEST_FACTOR:.0e}"
        within(key, value, lambda v: SMALLEST_FACTOR <= v <= LARGEST_FACTOR, allowed)


def _check_topk(ae: TopKConfig) -> None:
    _check_present("k", ae.k, "32")
    at_least("autoencoder.k", ae.k, 1)
    if ae.k > ae.n_latents:
        raise UserError(
            f"autoencoder.k={ae.k} is larger than autoencoder.n_latents={ae.n_latents}: a token "
            f"cannot have more active latents than there are. Set k to at most {ae.n_latents}."
        )
    _check_weight("autoencoder.aux_coef", ae.aux_coef)
    if ae.k_aux is not None:
        at_least("autoencoder.k_aux", ae.k_aux, 1)


def _check_prefixes(ae: MatryoshkaConfig) -> None:
    for given in ae.prefixes:
        if not _is_prefix(given):
            raise UserError(
                f"autoencoder.prefixes={list(ae.prefixes)}: {given} is neither a share of the "
                "latents, up to 1, nor a whole number of them. Give other prefixes, e.g. "
                "autoencoder.prefixes=[0.25,0.5,1]."
            )
    counts = prefix_counts(ae)
    if counts != sorted({count for count in counts if count > 0}) or counts[-1:] != [ae.n_latents]:
        raise UserError(
            f"autoencoder.prefixes={list(ae.prefixes)} is {counts} latents of "
            f"autoencoder.n_latents={ae.n_latents}: nested dictionaries ascend from at least one "
            "latent, and the last is all of them. Give other prefixes, e.g. "
            "autoencoder.prefixes=[0.25,0.5,1]."
        )


def _is_prefix(given: object) -> bool:
    """Whatever its list declares: a number that is no count is a share."""
    if not isinstance(given, int | float) or not math.isfinite(given):
        return False
    return given <= 1 or given == int(given)


def _check_penalized(ae: PenalizedConfig) -> None:
    _check_present("penalty", ae.penalty, "0.01")
    _check_weight("autoencoder.penalty", ae.penalty)
    share = ae.penalty_warmup
    within("autoencoder.penalty_warmup", share, lambda v: 0 <= v <= 1, "0..1")
    if isinstance(ae, ProLUConfig | GatedConfig):
        _check_gated(ae)
    if isinstance(ae, JumpReLUConfig):
        for key in ("bandwidth", "initial_threshold", "target_l0"):
            _check_width(f"autoencoder.{key}", getattr(ae, key))
        if ae.target_l0 is not None and ae.target_l0 > ae.n_latents:
            raise UserError(
                f"autoencoder.target_l0={ae.target_l0:g} is more than autoencoder.n_latents="
                f"{ae.n_latents}. Set it to the active latents a token that are wanted, e.g. 32."
            )


def _check_gated(ae: ProLUConfig | GatedConfig) -> None:
    """Their L1 norm needs unit rows, and their bias is what they are about."""
    name, weighted = name_of(ae), isinstance(ae, ProLUConfig) and ae.weighted_l1
    if not ae.decoder_norm and not weighted:
        remedy = " or autoencoder.weighted_l1=true" if isinstance(ae, ProLUConfig) else ""
        raise UserError(
            f"autoencoder.decoder_norm=false with autoencoder={name}: its penalty is a plain L1 "
            "norm, which small values and long decoder rows would evade. Set "
            f"autoencoder.decoder_norm=true{remedy}."
        )
    if not ae.b_enc:
        raise UserError(
            f"autoencoder.b_enc=false with autoencoder={name}: the bias is its gate, without which "
            "it is another architecture. Leave autoencoder.b_enc=true, or take autoencoder=relu."
        )
