"""Checks of the keys of `train`: its length, its rate, and the rule that may end it."""

from __future__ import annotations

from scaling import budget
from scaling.autoencoder_config import PenalizedConfig
from scaling.choices import LrRule
from scaling.config import RunConfig
from scaling.errors import UserError
from scaling.sweep.architectures import warmup_steps
from scaling.sweep.planner import lr_rule, peak_lr
from scaling.sweep.ranges import at_least, positive, within
from scaling.train.stopping import first_step
from scaling.train_config import LrPowerConfig, StopConfig, TrainConfig

LARGEST_RATE = 1e18
"""So that a step stays within float32; long before it, every run diverges."""
SMALLEST_RATE = 1e-30
"""Far above what float32 takes for 0, far below what moves a weight."""


def check_train(config: RunConfig) -> None:
    """Check the keys of `train` against each other and against the width.

    Raises:
        UserError: naming the key, its value and the remedy.
    """
    train = config.train
    at_least("train.batch_tokens", train.batch_tokens, 1)
    at_least("train.shuffle_block", train.shuffle_block, 1)
    at_least("train.warmup_tokens", train.warmup_tokens, 0)
    at_least("train.seed", train.seed, 0)
    if train.tokens < train.batch_tokens:
        raise UserError(
            f"train.tokens={train.tokens} is less than one batch "
            f"(train.batch_tokens={train.batch_tokens}). Raise the one or lower the other"
            f"{_of_d_star(config)}."
        )
    if train.warmup_tokens >= train.tokens:
        raise UserError(
            f"train.warmup_tokens={train.warmup_tokens} leaves nothing of train.tokens="
            f"{train.tokens}: the learning rate would never reach its peak. Lower it."
        )
    _check_rates(config)
    _check_stop(train)
    _check_penalty_before_stop(config)
    positive("train.clip_norm", train.clip_norm)
    positive("train.adam_eps", train.adam_eps)
    if train.spike_factor is not None:
        within("train.spike_factor", train.spike_factor, lambda v: v > 1, "above 1")
    within("train.decay_fraction", train.decay_fraction, lambda v: 0 <= v <= 1, "0..1")
    for key in ("adam_beta1", "adam_beta2", "ema_decay"):
        within(f"train.{key}", getattr(train, key), lambda v: 0 <= v < 1, "0 up to below 1")


def _check_rates(config: RunConfig) -> None:
    train, own = config.train, config.train.lr_power
    for key, value in (
        ("train.lr", train.lr),
        ("train.lr_scale", train.lr_scale),
        ("train.lr_power.lr", own.lr),
    ):
        positive(key, value)
        if value is not None:
            within(key, value, lambda v: v <= LARGEST_RATE, f"at most {LARGEST_RATE:.0e}")
    for key in ("n", "tokens", "batch"):
        within(f"train.lr_power.{key}", getattr(own, key), lambda v: abs(v) <= 4, "-4..4")
    if train.lr_rule is LrRule.power and train.lr is None and own.lr is None:
        raise UserError(
            "train.lr_power.lr is not set, from which train.lr_rule=power begins. Give the keys "
            "that python -m analysis.calibrate prints, or another train.lr_rule."
        )
    if train.lr_rule is not LrRule.power and own != LrPowerConfig():
        raise UserError(
            f"train.lr_power is not read by train.lr_rule={train.lr_rule}. Set "
            "train.lr_rule=power, or leave train.lr_power out."
        )
    _check_settled_rate(config)


def _check_settled_rate(config: RunConfig) -> None:
    """Of factors that may each pass, the product is the rate."""
    train, rate = config.train, peak_lr(config)
    if SMALLEST_RATE <= rate <= LARGEST_RATE:
        return
    origin = f"train.lr={train.lr}" if train.lr is not None else f"train.lr_rule={train.lr_rule}"
    raise UserError(
        f"{origin} with train.lr_scale={train.lr_scale} gives a learning rate of {rate:g} at "
        f"autoencoder.n_latents={config.autoencoder.n_latents}, train.tokens={train.tokens} and "
        f"train.batch_tokens={train.batch_tokens}, out of range. Set these so that it is "
        f"{SMALLEST_RATE:.0e} to {LARGEST_RATE:.0e}; long runs use about 1e-4."
    )


def _check_stop(train: TrainConfig) -> None:
    stop = train.stop
    if stop.fall is None:
        _check_unread(stop)
        return
    within("train.stop.fall", stop.fall, lambda v: 0 < v < 1, "above 0 and below 1")
    within("train.stop.per_doubling", stop.per_doubling, lambda v: 1 <= v <= 16, "1..16")
    at_least("train.stop.after_tokens", stop.after_tokens, 1)
    if train.decay_fraction:
        raise UserError(
            f"train.decay_fraction={train.decay_fraction} with train.stop.fall: a rate that falls "
            "towards a planned end cannot meet one that is not planned. Set train.decay_fraction=0."
        )
    if not train.ema_decay:
        raise UserError(
            "train.ema_decay=0 keeps no averaged weights, by whose loss train.stop.fall judges. "
            "Set train.ema_decay=0.999."
        )
    _check_doubling(train)
    _check_rate_without_end(train)


def _check_unread(stop: StopConfig) -> None:
    """Values that nothing reads are a mistake: of the sweep, or of their reader."""
    for key in ("after_tokens", "per_doubling"):
        if (value := getattr(stop, key)) != getattr(StopConfig(), key):
            raise UserError(
                f"train.stop.{key}={value} is not read without train.stop.fall. Set "
                f"train.stop.fall=0.01, or leave train.stop.{key} out."
            )


def _check_doubling(train: TrainConfig) -> None:
    """The rule counts steps: it first judges at twice the step of its first evaluation."""
    first = first_step(train.stop.after_tokens, train.batch_tokens)
    steps = budget.n_steps(train.tokens, train.batch_tokens)
    if 2 * first > steps:
        raise UserError(
            f"train.stop.after_tokens={train.stop.after_tokens} leaves no doubling to judge within "
            f"train.tokens={train.tokens}: the first evaluation is after step {first} of {steps} "
            f"(train.batch_tokens={train.batch_tokens}). Lower the one or raise the other."
        )


def _check_penalty_before_stop(config: RunConfig) -> None:
    """While the weight of a penalty rises, so does the loss: no sign that a run is through."""
    ae, train = config.autoencoder, config.train
    if train.stop.fall is None or not isinstance(ae, PenalizedConfig):
        return
    steps = budget.n_steps(train.tokens, train.batch_tokens)
    rising = warmup_steps(ae, steps)
    if rising > first_step(train.stop.after_tokens, train.batch_tokens):
        tokens = rising * train.batch_tokens
        raise UserError(
            f"autoencoder.penalty_warmup={ae.penalty_warmup} of train.tokens={train.tokens} ends "
            f"after {tokens} tokens, and train.stop judges losses from train.stop.after_tokens="
            f"{train.stop.after_tokens} on: they rise with the penalty's weight, and the run would "
            f"end as converged. Set train.stop.after_tokens={tokens} or more, or lower "
            "autoencoder.penalty_warmup."
        )


def _check_rate_without_end(train: TrainConfig) -> None:
    """A rate made for a number of tokens is another one for each limit that is never reached."""
    if train.lr is None and (exponent := lr_rule(train).tokens):
        raise UserError(
            f"train.lr_rule={train.lr_rule} has the exponent {exponent:g} of train.tokens, which "
            "is only a limit with train.stop.fall: the rate would depend on tokens that are not "
            "trained. Set train.lr, train.lr_rule=inverse_sqrt_n, or train.lr_rule=power with "
            "train.lr_power.tokens=0."
        )


def _of_d_star(config: RunConfig) -> str:
    """Where `${d_star:}` may have made the tokens: what to change then."""
    law, share = config.sweep.d_star, config.sweep.share
    if law.D0 is None:
        return ""
    return (
        f"; of ${{d_star:}}, raise sweep.share={share:g} or check sweep.d_star.D0={law.D0:g}"
        f", s={law.s:g} and n0={law.n0:g}"
    )
