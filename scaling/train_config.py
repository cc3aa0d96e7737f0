"""The keys of `train`: how long, at which rate, in which order, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass, field

from scaling.choices import FlopsConvention, LrRule, OnBadLoss


@dataclass(kw_only=True)
class LrPowerConfig:
    """A rule of one's own, as `python -m analysis.calibrate` prints it."""

    lr: float | None = None
    """At 1,024 latents, 1M training tokens and 256 tokens a step."""
    n: float = 0.0
    """Exponent of the latents."""
    tokens: float = 0.0
    """Exponent of the training tokens."""
    batch: float = 0.0
    """Exponent of the tokens a step."""


@dataclass(kw_only=True)
class StopConfig:
    """When to end a run to convergence, before train.tokens; docs/sweeps.md has the rule."""

    fall: float | None = None
    """End when the last doubling of tokens lowered the held-out loss of the averaged weights by
    less than this share, e.g. 0.01; null = train all of train.tokens."""
    after_tokens: int = 100_000
    """The first evaluation; no run ends before twice as many."""
    per_doubling: int = 2
    """Evaluations in each doubling of tokens."""


@dataclass(kw_only=True)
class TrainConfig:
    """How it is trained. Every field is part of the run's identity."""

    tokens: int = 0
    """Training tokens; the length that `flops` pays for where that is set instead."""
    flops: float | None = None
    """Training FLOPs, in the place of `tokens`."""
    flops_convention: FlopsConvention = FlopsConvention.dense
    """dense: 12 n d a token. sparse: 2 n d + 8 k d."""
    batch_tokens: int = 131_072
    """Tokens per step, over all ranks."""
    lr: float | None = None
    """Peak learning rate; null = `lr_rule`."""
    lr_rule: LrRule = LrRule.inverse_sqrt_n
    """inverse_sqrt_n: 2e-4 (n / 2^14)^-1/2.
    step_limited: 1.9e-3 (n / 1024)^-0.25 (tokens / 1e6)^-0.4 (batch / 256)^0.45.
    power: as `lr_power` says."""
    lr_power: LrPowerConfig = field(default_factory=LrPowerConfig)
    lr_scale: float = 1.0
    """Multiplies the rule, or `lr` (for learning-rate studies)."""
    warmup_tokens: int = 0
    decay_fraction: float = 0.0
    """Last share of training over which lr falls linearly to 0; 0 = constant."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_eps: float = 6.25e-10
    clip_norm: float | None = None
    """Clip the global gradient norm; null = off."""
    ema_decay: float = 0.999
    """Per step; the average is bias-corrected and used for evaluation only."""
    seed: int = 0
    """Seeds initialization and data order."""
    shuffle_block: int = 1
    """Rows read together; 1 = every row drawn independently. Raise it for stores that do not
    fit in memory (their rows are globally shuffled already)."""
    on_bad_loss: OnBadLoss = OnBadLoss.stop
    """What to do with a step whose loss is not finite, or a spike: stop the run as `diverged`, or
    skip the update and count it."""
    spike_factor: float | None = None
    """A loss above this multiple of the median of the last 100 steps is a spike; null = none is."""
    stop: StopConfig = field(default_factory=StopConfig)
