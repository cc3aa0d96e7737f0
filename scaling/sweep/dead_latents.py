"""From the keys on dead latents to settled numbers, and what is defined with what."""

from __future__ import annotations

from scaling import budget
from scaling.autoencoder_config import AutoencoderConfig, ReLUConfig, TopKConfig, name_of
from scaling.choices import DeadTreatment
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.sweep.ranges import at_least, within

TREATED = (TopKConfig, ReLUConfig)
"""Architectures, with their variants, for which ghost gradients and resampling are defined."""


def settled_treatment(ae: AutoencoderConfig) -> tuple[DeadTreatment, float]:
    """What is done for dead latents, and the weight of AuxK: AuxK of weight 0 is none."""
    if ae.dead_treatment is not DeadTreatment.auxk:
        return ae.dead_treatment, 0.0
    aux_coef = ae.aux_coef if isinstance(ae, TopKConfig) else 0.0
    return (DeadTreatment.auxk, aux_coef) if aux_coef else (DeadTreatment.none, 0.0)


def resampled_every(ae: AutoencoderConfig, tokens: int, batch_tokens: int) -> int:
    """Updates between resamplings, of a run of so many training tokens."""
    every = tokens // 8 if ae.resample_every_tokens is None else ae.resample_every_tokens
    return max(1, every // batch_tokens)


def settled_resampling(ae: AutoencoderConfig, steps: int, batch_tokens: int) -> dict[str, int]:
    """After how many updates dead latents are resampled, and until which; nothing where not."""
    if ae.dead_treatment is not DeadTreatment.resample:
        return {}
    return {
        "resample_every_steps": resampled_every(ae, steps * batch_tokens, batch_tokens),
        "resample_until_step": int(ae.resample_until * steps),
    }


def check_treatment(ae: AutoencoderConfig) -> None:
    """Check what is done for dead latents against the architecture.

    Raises:
        UserError: naming the key, its value and the remedy.
    """
    treatment = ae.dead_treatment
    if treatment is DeadTreatment.auxk and not isinstance(ae, TopKConfig):
        raise UserError(
            f"autoencoder.dead_treatment=auxk is not defined for autoencoder={name_of(ae)}: AuxK "
            "selects among pre-activations as TopK does. Set autoencoder.dead_treatment=none."
        )
    others = (DeadTreatment.ghost_grads, DeadTreatment.resample)
    if treatment in others and not isinstance(ae, TREATED):
        raise UserError(
            f"autoencoder.dead_treatment={treatment} is not defined for autoencoder="
            f"{name_of(ae)}: it is for TopK, its variants and ReLU, whose latents have no "
            "parameters but their rows and b_enc. Set autoencoder.dead_treatment=none."
        )


def check_resampling(config: RunConfig) -> None:
    """Check when dead latents are resampled against the length of training.

    Raises:
        UserError: naming the key, its value and the remedy.
    """
    ae, train = config.autoencoder, config.train
    if ae.dead_treatment is not DeadTreatment.resample:
        _check_unread(ae)
        return
    every = ae.resample_every_tokens
    within("autoencoder.resample_until", ae.resample_until, lambda v: 0 < v <= 1, "above 0, to 1")
    steps = budget.n_steps(train.tokens, train.batch_tokens)
    last = int(ae.resample_until * steps)
    if every is not None:
        at_least("autoencoder.resample_every_tokens", every, train.batch_tokens)
    if settled_resampling(ae, steps, train.batch_tokens)["resample_every_steps"] > last:
        raise UserError(
            f"autoencoder.resample_every_tokens={every} (null: an eighth of training) with "
            f"autoencoder.resample_until={ae.resample_until} and train.tokens={train.tokens}: no "
            "latent would ever be resampled. Set the first to at most "
            f"{last * train.batch_tokens}, or raise the second."
        )


def _check_unread(ae: AutoencoderConfig) -> None:
    """A key that nothing reads is a mistake."""
    for key in ("resample_every_tokens", "resample_until"):
        if (value := getattr(ae, key)) != getattr(AutoencoderConfig(), key):
            raise UserError(
                f"autoencoder.{key}={value} is not read with autoencoder.dead_treatment="
                f"{ae.dead_treatment}. Set autoencoder.dead_treatment=resample, or leave it out."
            )
