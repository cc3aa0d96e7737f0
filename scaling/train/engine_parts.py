"""What the engines share: the settings of updates, scoring, and taking up a saved tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from scaling.autoencoder.base import Autoencoder, Losses
from scaling.autoencoder.code import Code
from scaling.autoencoder.dead import DeadLatents
from scaling.train.engine import StepStats
from scaling.train.mesh import Mesh
from scaling.train.resample import Resampling
from scaling.train.weight_average import WeightAverage


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """Adam's constants, clipping, averaging and resampling, all settled."""

    beta1: float
    beta2: float
    eps: float
    clip_norm: float | None
    ema_decay: float
    """Per step; 0 = no average is kept."""
    resampling: Resampling | None = None
    """Of dead latents; None = they are not drawn anew."""


DRIFT_TOLERANCE = 1e-4
SUMMED_VALUES = 2**22
"""At a time, as float64."""


class ModelScorer:
    """See `scaling.train.engine.Reconstructor`."""

    def __init__(self, model: Autoencoder) -> None:
        self.model = model

    @torch.no_grad()
    def reconstruct(self, x_BD: Tensor) -> tuple[Code, Tensor]:
        code = self.model.encode(x_BD.to(self.model.w_enc))
        return code, self.model.decode(code)


M = TypeVar("M", bound=Autoencoder)


class ModelHolder(Generic[M]):
    """What `scaling.train.engine.Engine` asks of the model, however it is trained."""

    model: M
    params: dict[str, nn.Parameter]
    dead: DeadLatents
    average: WeightAverage
    mesh: Mesh

    def scorer(self, *, averaged: bool = False) -> ModelScorer:
        model = self.model
        model.shard.measures = False  # what is measured are steps
        if averaged:
            model = model.with_weights(self.weights(averaged=True))
        return ModelScorer(model)

    def tokens_since_fired(self) -> Tensor:
        return self.dead.tokens_since_fired_N

    def weights(self, *, averaged: bool = False) -> dict[str, Tensor]:
        statistics = _copies(dict(self.model.named_buffers()))
        return (self.average.corrected() if averaged else _copies(self.params)) | statistics

    def report(self) -> dict[str, float]:
        return self.model.shard.report()

    def check_replicas(self) -> None:
        """All replicas hold the same rows, and all shards the same b_pre, or something is broken.

        Sums are compared, to a tolerance that the rounding of unlike processors stays within:
        of weights, averages, statistics and counters, weighted by position. One process has nobody
        to differ from.
        """
        if self.mesh.world_size == 1:
            return
        held = {**self.params, **self.average.targets(), **dict(self.model.named_buffers())}
        held["tokens_since_fired"] = self.dead.tokens_since_fired_N
        sums = {name: _weighted_sum(tensor) for name, tensor in held.items()}
        everything = torch.stack(list(sums.values()))
        _check_alike(self.mesh.dp.gather(everything, "replica check"), "replicas")
        b_pre = sums["b_pre"].reshape(1)
        _check_alike(self.mesh.latent.gather(b_pre, "replica check"), "shards (b_pre)")

    def stats(self, losses: Losses, *, measured: bool) -> StepStats:
        """Of a step's losses: the global batch's if measured, else this replica's."""
        parts = [losses.total.detach(), losses.normalized_mse, losses.aux]
        if losses.sparsity is not None:
            parts.append(losses.sparsity)
        scalars = torch.stack(parts)
        if measured:
            scalars = self.mesh.dp.sum_(scalars, "losses") / self.mesh.dp.size
        loss, mse, aux, *rest = scalars
        dead_fraction = losses.n_dead / self.model.spec.n_latents
        sparsity = rest[0] if rest else None
        return StepStats(loss, mse, aux, dead_fraction, grad_norm=None, sparsity=sparsity)


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def _weighted_sum(tensor: Tensor) -> Tensor:
    """Sum of all values, weighted by position, so that rows that trade places change it; 0-d."""
    total = torch.zeros((), dtype=torch.float64, device=tensor.device)
    for index, values in enumerate(tensor.flatten().split(SUMMED_VALUES)):
        places = torch.linspace(1, 2, len(values), dtype=torch.float64, device=values.device)
        total += (1 + index) * (places @ values.double())
    return total


def _check_alike(sums_RS: Tensor, who: str) -> None:
    """What is not finite on all ranks alike is a run that diverges, not one that drifts."""
    spread_S = sums_RS.amax(dim=0) - sums_RS.amin(dim=0)
    close_S = spread_S <= DRIFT_TOLERANCE * (1 + sums_RS.abs().amax(dim=0))
    if not (close_S | ~sums_RS.isfinite().any(dim=0)).all():
        raise RuntimeError(
            f"{who} have drifted apart: sums that should be equal are {sums_RS.tolist()}. A rank "
            "computed something else; nothing was saved."
        )


def copy_all_checked(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy a saved state into an engine's tensors: all of it, or nothing where it does not fit.

    Raises:
        KeyError: a tensor is absent.
        ValueError: one has another shape or dtype.
    """
    for name, target in targets.items():
        source = state[name]
        if target.shape != source.shape or target.dtype != source.dtype:
            raise ValueError(
                f"state tensor {name} is {tuple(source.shape)} {source.dtype}, "
                f"this run needs {tuple(target.shape)} {target.dtype}"
            )
    for name, target in targets.items():
        target.copy_(state[name])
