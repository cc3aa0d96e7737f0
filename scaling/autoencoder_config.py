"""The keys of `autoencoder`: the architectures, what they share, and what each has of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from scaling.choices import BPreInit, DeadTreatment, EncoderInit, ProLUGradient


@dataclass(kw_only=True)
class AutoencoderConfig:
    """What is trained. Every field is part of the run's identity."""

    n_latents: int = MISSING
    dead_treatment: DeadTreatment = DeadTreatment.none
    dead_after_tokens: int = 10_000_000
    """A latent silent for this many tokens (counted globally) is dead. One value per sweep."""
    resample_every_tokens: int | None = None
    """Training tokens between resamplings of dead latents, with dead_treatment=resample; null = an
    eighth of training."""
    resample_until: float = 0.5
    """Share of training after which no latent is resampled."""
    b_pre_init: BPreInit = BPreInit.geometric_median
    encoder_init: EncoderInit = EncoderInit.tied
    scale_encoder: bool = True
    """Scale the encoder at init so that the reconstruction's norm is the input's."""
    b_enc: bool = True
    """Train a bias per latent; false = it stays 0."""
    decoder_norm: bool = True
    """Bring decoder rows back to unit norm after each step."""
    gradient_projection: bool = True
    """Remove the decoder gradient's component along each row first."""


@dataclass(kw_only=True)
class TopKConfig(AutoencoderConfig):
    """TopK autoencoder with a pre-bias, a latent bias and the AuxK loss (Gao et al. 2024)."""

    k: int = MISSING
    """Active latents per token."""
    dead_treatment: DeadTreatment = DeadTreatment.auxk
    k_aux: int | None = None
    """Dead latents that model the residual; null = the power of two nearest to d_model / 2."""
    aux_coef: float = 1 / 32
    """Weight of the AuxK loss; 0 turns it off."""


@dataclass(kw_only=True)
class MultiTopKConfig(TopKConfig):
    """TopK with a second, wider reconstruction in its loss (Gao et al. 2024, appendix)."""

    wide_factor: int = 4
    """The wider reconstruction has this many times k latents, at most all."""
    wide_weight: float = 1 / 8
    """Weight of its loss."""


@dataclass(kw_only=True)
class MatryoshkaConfig(TopKConfig):
    """Nested dictionaries, each of which reconstructs (Bussmann et al. 2025), with TopK."""

    prefixes: list[float] = field(default_factory=lambda: [1 / 32, 3 / 32, 7 / 32, 15 / 32, 1])
    """First latents that make a dictionary: up to 1 a share of n_latents, above 1 a count. The last
    is all of them."""


@dataclass(kw_only=True)
class BatchTopKConfig(TopKConfig):
    """The B k largest of a batch in training, a threshold at inference (Bussmann et al. 2024)."""

    threshold_decay: float = 0.9
    """Share that a step keeps of the running mean which is the threshold."""


@dataclass(kw_only=True)
class PenalizedConfig(AutoencoderConfig):
    """Architectures whose sparsity is an outcome: they pay for activity."""

    penalty: float = MISSING
    """Lambda: weight of the sparsity penalty beside |x - xhat|^2, for x as it is normalized."""
    penalty_warmup: float = 0.05
    """First share of training over which the weight rises linearly from 0."""


@dataclass(kw_only=True)
class ReLUConfig(PenalizedConfig):
    """ReLU with an L1 penalty weighted by decoder norms, which are free (Conerly et al. 2024)."""

    decoder_norm: bool = False
    gradient_projection: bool = False


@dataclass(kw_only=True)
class ProLUConfig(PenalizedConfig):
    """A bias that gates without shifting, with an L1 penalty (Taggart 2024)."""

    gradient: ProLUGradient = ProLUGradient.relu
    """Which of the two published synthetic gradients."""
    weighted_l1: bool = False
    """Weigh the penalty by decoder norms; false = the plain L1 norm, as published."""


@dataclass(kw_only=True)
class GatedConfig(PenalizedConfig):
    """One path decides which latents are active, another how much; the penalty is on the first
    (Rajamanoharan et al. 2024, arXiv 2404.16014). b_enc is the gate's bias."""


@dataclass(kw_only=True)
class JumpReLUConfig(PenalizedConfig):
    """A trained threshold per latent and an L0 penalty (Rajamanoharan et al. 2024, arXiv
    2407.14435)."""

    bandwidth: float = 0.001
    """Width of the kernel that estimates the threshold's gradient, in units of x's root mean
    squared distance from its mean."""
    initial_threshold: float = 0.001
    """In the same unit."""
    target_l0: float | None = None
    """Penalize (L0 / this - 1)^2 of the batch's mean L0; null = L0 itself."""


ARCHITECTURES: dict[str, type[AutoencoderConfig]] = {
    "topk": TopKConfig,
    "relu": ReLUConfig,
    "prolu": ProLUConfig,
    "gated": GatedConfig,
    "jumprelu": JumpReLUConfig,
    "multi_topk": MultiTopKConfig,
    "matryoshka": MatryoshkaConfig,
    "batch_topk": BatchTopKConfig,
}
"""By the name in `autoencoder=NAME`."""


def name_of(config: AutoencoderConfig) -> str:
    """What `autoencoder=` was set to."""
    return next(name for name, node in ARCHITECTURES.items() if type(config) is node)


def k_of(config: AutoencoderConfig) -> int | None:
    """Active latents per token; None where sparsity is an outcome."""
    return getattr(config, "k", None)


def has_dense_code(config: AutoencoderConfig) -> bool:
    """Whether a code has a value for each latent: it then asks nothing of the kernels."""
    return k_of(config) is None or isinstance(config, BatchTopKConfig)


def widest_k(config: AutoencoderConfig) -> int:
    """Latents per token that are decoded at once; 0 where the code is dense."""
    if has_dense_code(config) or not isinstance(config, TopKConfig):
        return 0
    factor = config.wide_factor if isinstance(config, MultiTopKConfig) else 1
    return min(factor * config.k, config.n_latents)
