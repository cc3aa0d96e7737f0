"""Learning rates: rules for the peak, published, measured or one's own, and its course."""

from __future__ import annotations

from dataclasses import dataclass

N_LATENTS, TOKENS, BATCH_TOKENS = 1024, 1e6, 256
"""Where a rule of one's own states its rate: so many latents, training tokens, tokens a step."""


@dataclass(frozen=True)
class PowerRule:
    """lr = `lr` (n / n0)^`n` (D / TOKENS)^`tokens` (B / BATCH_TOKENS)^`batch`, independent of k."""

    lr: float
    """At n0 latents, TOKENS training tokens and BATCH_TOKENS tokens a step."""
    n: float
    tokens: float
    batch: float
    n0: float = N_LATENTS

    def at(self, n_latents: float, tokens: float, batch_tokens: float) -> float:
        return (
            self.lr
            * (n_latents / self.n0) ** self.n
            * (tokens / TOKENS) ** self.tokens
            * (batch_tokens / BATCH_TOKENS) ** self.batch
        )


INVERSE_SQRT_N = PowerRule(2e-4, n=-0.5, tokens=0.0, batch=0.0, n0=2**14)
"""The published calibration for long runs at large batches."""

STEP_LIMITED = PowerRule(1.9e-3, n=-0.25, tokens=-0.4, batch=0.45)
"""For short runs.

Calibrated at n = 256..4096, D = 125k..1M, B = 256..4096 on residual streams of a 135M model
(grid of peaks, parabola in ln lr). The exponent in D is real: one rate for all D would be
read by a fit as a wrong token exponent.
"""

RULES = {"inverse_sqrt_n": INVERSE_SQRT_N, "step_limited": STEP_LIMITED}
"""By their names in train.lr_rule."""


def lr_at(
    tokens: int, *, peak: float, total_tokens: int, warmup_tokens: int, decay_fraction: float
) -> float:
    """The rate of the step that starts after `tokens` tokens: warm-up, constant, linear to 0."""
    rate = peak
    if tokens < warmup_tokens:
        rate *= (tokens + 1) / (warmup_tokens + 1)
    decay_tokens = decay_fraction * total_tokens
    left = total_tokens - tokens
    if left < decay_tokens:
        rate *= left / decay_tokens
    return rate
