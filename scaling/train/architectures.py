"""From a plan to the autoencoder it names."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from scaling import budget
from scaling.autoencoder.base import Autoencoder
from scaling.autoencoder.batch_topk import BatchTopKAutoencoder, BatchTopKSpec
from scaling.autoencoder.dense import DenseAutoencoder, PenalizedSpec
from scaling.autoencoder.gated import GatedAutoencoder
from scaling.autoencoder.jumprelu import JumpReLUAutoencoder, JumpReLUSpec
from scaling.autoencoder.matryoshka import MatryoshkaAutoencoder, MatryoshkaSpec
from scaling.autoencoder.multi_topk import MultiTopKAutoencoder, MultiTopKSpec
from scaling.autoencoder.prolu import ProLUAutoencoder, ProLUSpec
from scaling.autoencoder.registry import ARCHITECTURES
from scaling.autoencoder.relu import ReLUAutoencoder
from scaling.autoencoder.shard import LatentShard
from scaling.autoencoder.topk import TopKAutoencoder, TopKSpec
from scaling.kernels import Kernels
from scaling.plan import RunPlan

DENSE: dict[str, tuple[type[PenalizedSpec], type[DenseAutoencoder[Any]]]] = {
    "relu": (PenalizedSpec, ReLUAutoencoder),
    "prolu": (ProLUSpec, ProLUAutoencoder),
    "gated": (PenalizedSpec, GatedAutoencoder),
    "jumprelu": (JumpReLUSpec, JumpReLUAutoencoder),
}
"""Architectures whose plan's options are what their spec has beside the shared fields."""


def build_autoencoder(
    plan: RunPlan,
    kernels: Kernels,
    weights: dict[str, Tensor],
    mean_predictor_mse: float,
    shard: LatentShard | None = None,
) -> Autoencoder:
    """The planned architecture with these weights.

    Raises:
        ValueError: the plan names none.
    """
    ae, shared = plan.autoencoder, _shared(plan, mean_predictor_mse)
    selected = {**shared, **ae.options, "k": ae.k, "k_aux": ae.k_aux, "aux_coef": ae.aux_coef}
    match ae.name:
        case "topk":
            return TopKAutoencoder(TopKSpec(**selected), kernels, weights, shard)
        case "multi_topk":
            return MultiTopKAutoencoder(MultiTopKSpec(**selected), kernels, weights, shard)
        case "matryoshka":
            selected["prefixes"] = tuple(selected["prefixes"])
            return MatryoshkaAutoencoder(MatryoshkaSpec(**selected), kernels, weights, shard)
        case "batch_topk":
            return BatchTopKAutoencoder(BatchTopKSpec(**selected), kernels, weights, shard)
        case name if name in DENSE:
            spec_type, architecture = DENSE[name]
            return architecture(spec_type(**shared, **ae.options), weights, shard)
    raise ValueError(f"autoencoder={ae.name} is unknown")


def n_params(plan: RunPlan) -> int:
    """Trained values of the planned autoencoder, its own per-latent ones among them."""
    ae = plan.autoencoder
    own = len(ARCHITECTURES[ae.name].MORE_PER_LATENT)
    return budget.n_params(ae.n_latents, plan.source.d_model) + own * ae.n_latents


def _shared(plan: RunPlan, mean_predictor_mse: float) -> dict[str, Any]:
    ae = plan.autoencoder
    return {
        "d_model": plan.source.d_model,
        "n_latents": ae.n_latents,
        "mean_predictor_mse": mean_predictor_mse,
        "b_enc": ae.b_enc,
        "decoder_norm": ae.decoder_norm,
        "gradient_projection": ae.gradient_projection,
        "ghost_grads": ae.dead_treatment == "ghost_grads",
    }
