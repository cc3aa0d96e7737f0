"""The engine of one replica without gradient matrices: one pass over tokens, one over latents.

The same equations and order as `scaling.train.torch_engine`, in which autograd writes two [N, D]
gradients, and projection, Adam, renormalization and averaging each read and write matrices of that
size again. Here a latent's gradient rows are summed, used and forgotten in one visit.

Clipping by the global norm needs that norm before the first update, so it costs a second pass.

The replica's latents may be sharded: then the pass over tokens stops in the middle, for the shards'
partial reconstructions to be added up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scaling.autoencoder.base import Losses
from scaling.autoencoder.dead import DeadLatents
from scaling.autoencoder.losses import auxiliary_scale
from scaling.autoencoder.topk import TopKAutoencoder, is_plain_topk
from scaling.kernels import Active
from scaling.kernels.fused import (
    AdamStep,
    AuxiliaryPass,
    GradientSummary,
    LatentState,
    LatentSums,
    RowGradients,
    Rows,
    TokenPass,
)
from scaling.train.engine import Accept, StepStats
from scaling.train.engine_parts import ModelHolder, OptimizerSpec, copy_all_checked
from scaling.train.fused_sharded import (
    AuxiliaryTask,
    ShardedKernels,
    auxiliary_pass_over_shards,
    selected_over_shards,
    token_pass_over_shards,
)
from scaling.train.mesh import ALONE, Mesh
from scaling.train.weight_average import WeightAverage

CLIP_EPSILON = 1e-6
"""As in torch.nn.utils.clip_grad_norm_."""


class Auxiliary(NamedTuple):
    loss: Tensor
    """Before its weight, 0-d."""
    gradients: RowGradients | None


class FusedEngine(ModelHolder[TopKAutoencoder]):
    """See `scaling.train.engine.Engine`."""

    def __init__(
        self,
        model: TopKAutoencoder,
        optimizer: OptimizerSpec,
        dead_after_tokens: int,
        mesh: Mesh = ALONE,
    ) -> None:
        """`model.kernels` must be `FusedKernels`.

        Raises:
            ValueError: `mesh` has several replicas, or the model is not the plain TopK one.
        """
        if mesh.dp.size > 1:
            raise ValueError(f"the fused engine trains one replica, not {mesh.dp.size}")
        if not is_plain_topk(model):
            raise ValueError(f"the fused engine trains TopK as published, not {model.spec}")
        if optimizer.resampling is not None:
            raise ValueError("the fused engine resamples no latents: the torch engine does")
        self.mesh = mesh
        self.model = model.requires_grad_(False)
        self.kernels: ShardedKernels = model.kernels  # type: ignore[assignment]
        self.spec = optimizer
        self.params = dict(model.named_parameters())
        self.moments = {
            name: (torch.zeros_like(param), torch.zeros_like(param))
            for name, param in self.params.items()
        }
        self.n_updates = 0
        self.dead = DeadLatents(len(model.w_enc), dead_after_tokens, model.w_enc.device)
        self.average = WeightAverage(self.params, optimizer.ema_decay)
        self.shadow = self.kernels.make_shadow(model.w_enc, model.w_dec)

    @torch.no_grad()
    def step(
        self, batch_BD: Tensor, lr: float, *, measure: bool = False, accept: Accept | None = None
    ) -> StepStats:
        self.model.shard.measures = measure
        dead_ids = self.dead.ids()
        n_dead = self.model.shard.gather_counts(len(dead_ids))
        centered_BD = batch_BD - self.model.b_pre
        active, passed, residual_scale = self._pass_tokens(centered_BD)
        auxiliary = self._auxiliary(centered_BD, passed.residual_BD, dead_ids, n_dead)
        mse = passed.squared_error / (batch_BD.numel() * self.model.spec.mean_predictor_mse)
        total = mse + self.model.spec.aux_coef * auxiliary.loss
        scalars = [scalar.to(batch_BD.dtype) for scalar in (total, mse, auxiliary.loss)]
        losses = Losses(scalars[0], scalars[1], scalars[2], sum(n_dead))
        stats = self.stats(losses, measured=True)
        if accept is not None and not accept(float(stats.loss)):
            return stats._replace(skipped=True)
        sums = LatentSums(
            active=active,
            grad_values_BK=passed.grad_values_BK,
            centered_BD=centered_BD,
            residual_BD=passed.residual_BD,
            residual_scale=residual_scale,
            extra=auxiliary.gradients,
        )
        grad_norm = self._update(sums, lr)
        self.dead.update(self.dead.fired(active), len(batch_BD))
        if not measure and self.spec.clip_norm is None:
            return stats
        return stats._replace(grad_norm=grad_norm)

    def _pass_tokens(self, centered_BD: Tensor) -> tuple[Active, TokenPass, float]:
        model = self.model
        k = min(model.spec.k, len(model.w_enc))
        found = self.kernels.select(centered_BD, model.w_enc, model.b_enc, k, self.shadow)
        # d/dxhat of the mean of (x - xhat)^2 over the mean predictor's.
        scale = -2 / (centered_BD.numel() * model.spec.mean_predictor_mse)
        if self.mesh.latent.size == 1:
            passed = self.kernels.token_pass(centered_BD, found, model.w_dec, scale, self.shadow)
            return found, passed, scale
        active = selected_over_shards(model.shard, found, model.spec.k, k)
        passed = token_pass_over_shards(
            self.kernels, model.shard, centered_BD, active, model.w_dec, scale
        )
        return active, passed, scale

    def _auxiliary(
        self, centered_BD: Tensor, target_BD: Tensor, dead: Tensor, n_dead: tuple[int, ...]
    ) -> Auxiliary:
        """AuxK; see `scaling.autoencoder.losses.auxiliary_loss`."""
        spec = self.model.spec
        undefined = Auxiliary(torch.zeros((), device=dead.device), None)
        if not spec.aux_coef or not sum(n_dead):
            return undefined
        per_value = float(auxiliary_scale(target_BD))
        if not per_value:
            return undefined
        passed = self._auxiliary_pass(
            centered_BD, target_BD, dead, max(n_dead), -2 * spec.aux_coef * per_value
        )
        loss = (passed.squared_error * per_value).to(target_BD.dtype)
        return Auxiliary(loss, passed.gradients) if loss.isfinite() else undefined

    def _auxiliary_pass(
        self, centered_BD: Tensor, target_BD: Tensor, dead: Tensor, most_dead: int, scale: float
    ) -> AuxiliaryPass:
        state, k_aux = self._latent_state(), self.model.spec.k_aux
        if self.mesh.latent.size == 1:
            k = min(k_aux, len(dead))
            return self.kernels.auxiliary_pass(centered_BD, target_BD, state, dead, k, scale)
        task = AuxiliaryTask(centered_BD, target_BD, dead, most_dead, k_aux, scale)
        return auxiliary_pass_over_shards(self.kernels, self.model.shard, state, task)

    def _update(self, sums: LatentSums, lr: float) -> Tensor:
        """Update everything; returns the global gradient norm before clipping."""
        state = self._latent_state()
        self.n_updates += 1
        factor = self._clip_factor(state, sums)
        adam = AdamStep(
            lr=lr,
            beta1=self.spec.beta1,
            beta2=self.spec.beta2,
            eps=self.spec.eps,
            step=self.n_updates,
            ema_decay=self.spec.ema_decay,
            grad_factor=factor,
        )
        summary = self._over_shards(self.kernels.update_latents(state, sums, adam))
        grad_b_pre_D = _b_pre_gradient(summary, sums)
        self._update_b_pre(factor * grad_b_pre_D, adam)
        self.average.update(("b_pre",))
        return _global_norm(summary, grad_b_pre_D)

    def _clip_factor(self, state: LatentState, sums: LatentSums) -> float:
        if self.spec.clip_norm is None:
            return 1.0
        summary = self._over_shards(self.kernels.summarize_gradients(state, sums))
        norm = _global_norm(summary, _b_pre_gradient(summary, sums))
        factor = self.spec.clip_norm / (float(norm) + CLIP_EPSILON)
        return 1.0 if factor >= 1 else factor  # NaN stays, as in torch: nothing hides a bad batch

    def _over_shards(self, summary: GradientSummary) -> GradientSummary:
        """The summary of all latents, from that of the latents here."""
        if self.mesh.latent.size == 1:
            return summary  # as it is: the norm may be in float64
        squared_norm_1 = summary.squared_norm.reshape(1).to(summary.b_pre_D.dtype)
        both = torch.cat([squared_norm_1, summary.b_pre_D])
        both = self.mesh.latent.sum_(both, "gradient summary")
        return GradientSummary(both[0], both[1:])

    def _latent_state(self) -> LatentState:
        def rows(name: str) -> Rows:
            average = self.average.averages.get(name)
            return Rows(self.params[name], *self.moments[name], average)

        return LatentState(rows("w_enc"), rows("w_dec"), rows("b_enc"), self.shadow)

    def _update_b_pre(self, grad_D: Tensor, adam: AdamStep) -> None:
        exp_avg_D, exp_avg_sq_D = self.moments["b_pre"]
        exp_avg_D.lerp_(grad_D, 1 - adam.beta1)
        exp_avg_sq_D.mul_(adam.beta2).addcmul_(grad_D, grad_D, value=1 - adam.beta2)
        denominator_D = exp_avg_sq_D.sqrt() / (1 - adam.beta2**adam.step) ** 0.5 + adam.eps
        step_size = adam.lr / (1 - adam.beta1**adam.step)
        self.model.b_pre.addcdiv_(exp_avg_D, denominator_D, value=-step_size)

    def state(self) -> dict[str, Tensor]:
        counters = {"tokens_since_fired": self.dead.tokens_since_fired_N.clone()}
        step = torch.tensor(float(self.n_updates))
        moments = {
            f"{name}.{part}": tensor.clone()
            for name, both in self.moments.items()
            for part, tensor in zip(("exp_avg", "exp_avg_sq"), both, strict=True)
        }
        steps = {f"{name}.step": step.clone() for name in self.params}
        return self.weights() | moments | steps | counters | self.average.state()

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        targets: dict[str, Tensor] = dict(self.params)
        for name, (exp_avg, exp_avg_sq) in self.moments.items():
            targets |= {f"{name}.exp_avg": exp_avg, f"{name}.exp_avg_sq": exp_avg_sq}
        targets["tokens_since_fired"] = self.dead.tokens_since_fired_N
        targets |= self.average.targets()
        copy_all_checked(targets, state)
        self.n_updates = int(state["w_enc.step"])
        self.average.n_updates = int(state["ema_updates"])
        self.shadow = self.kernels.make_shadow(self.model.w_enc, self.model.w_dec)


def _b_pre_gradient(summary: GradientSummary, sums: LatentSums) -> Tensor:
    """b_pre is added to xhat and subtracted from every pre-activation's input, [D]."""
    return sums.residual_scale * sums.residual_BD.sum(dim=0) - summary.b_pre_D


def _global_norm(summary: GradientSummary, grad_b_pre_D: Tensor) -> Tensor:
    return (summary.squared_norm + grad_b_pre_D.square().sum()).sqrt().to(grad_b_pre_D.dtype)
