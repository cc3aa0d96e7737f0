"""Learning rates: two published or measured rules for the peak, and its course over a run."""

from __future__ import annotations


def inverse_sqrt_n(n_latents: int) -> float:
    """2e-4 / sqrt(n / 2^14): the published calibration for long runs at large batches."""
    return 2e-4 * (n_latents / 2**14) ** -0.5


def step_limited(n_latents: int, tokens: int, batch_tokens: int) -> float:
    """For short runs: 1.9e-3 (n/1024)^-0.25 (D/1M)^-0.4 (B/256)^0.45, independent of k.

    Calibrated at n = 256..4096, D = 125k..1M, B = 256..4096 on residual streams of a 135M model
    (grid of peaks, parabola in ln lr). The exponent in D is real: one rate for all D would be
    read by a fit as a wrong token exponent.
    """
    return (
        1.9e-3 * (n_latents / 1024) ** -0.25 * (tokens / 1e6) ** -0.4 * (batch_tokens / 256) ** 0.45
    )


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
