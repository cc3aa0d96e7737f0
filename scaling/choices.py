"""What a key may be, where it is one of a few names."""

from __future__ import annotations

from enum import StrEnum, auto


class BPreInit(StrEnum):
    geometric_median = auto()
    mean = auto()
    zero = auto()


class EncoderInit(StrEnum):
    tied = auto()
    independent = auto()


class DeadTreatment(StrEnum):
    """What is done for latents that have been silent for `autoencoder.dead_after_tokens`."""

    none = auto()
    auxk = auto()
    """They model the residual, by a loss of their own (Gao et al. 2024)."""
    ghost_grads = auto()
    """They model the residual through exp, by a loss as large as the mse (Jermyn and Templeton
    2024)."""
    resample = auto()
    """At stated times they are drawn anew from inputs that are reconstructed badly (Bricken et al.
    2023)."""


class ProLUGradient(StrEnum):
    """What stands in for the derivative of ProLU (Taggart 2024)."""

    relu = auto()
    """As if the bias were ReLU's."""
    ste = auto()
    """The gate differentiated as if it were a ReLU."""


class LrRule(StrEnum):
    inverse_sqrt_n = auto()
    step_limited = auto()
    power = auto()
    """Of one's own exponents."""


class FlopsConvention(StrEnum):
    dense = auto()
    sparse = auto()


class Precision(StrEnum):
    float32 = auto()
    float64 = auto()
    bf16 = auto()
    """Float32 weights and arithmetic, but the encoder's matmul has bfloat16 operands: latents
    closer to the k-th than bf16 resolves may be swapped."""


class StoreDtype(StrEnum):
    float16 = auto()
    bfloat16 = auto()
    float32 = auto()


class ModelDtype(StrEnum):
    bfloat16 = auto()
    float32 = auto()


class Normalization(StrEnum):
    unit_norm = auto()
    """Per token: subtract the mean over d_model, scale to unit norm (the paper's)."""
    std = auto()
    """Per token: subtract the mean, divide by (unbiased std + 1e-5) (the released code's)."""
    none = auto()


class EngineName(StrEnum):
    auto = "auto"
    fused = "fused"
    torch = "torch"
    deepspeed = "deepspeed"


class ExchangeName(StrEnum):
    """How shards of latents agree on the k largest; all are exact. See docs/distributed.md."""

    auto = "auto"
    gather = "gather"
    candidates = "candidates"
    butterfly = "butterfly"


class OnBadLoss(StrEnum):
    stop = auto()
    skip = auto()


class LauncherName(StrEnum):
    local = auto()
    deepspeed = auto()
    slurm = auto()


class KernelsName(StrEnum):
    auto = "auto"
    cpu = "cpu"
    triton = "triton"
    torch = "torch"
    reference = "reference"


class DeviceName(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class LoggerName(StrEnum):
    jsonl = auto()
    wandb = auto()
