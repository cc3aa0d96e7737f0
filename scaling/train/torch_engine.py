"""The plain engine: autograd, torch's fused Adam, and the published order of a step.

    remove the decoder gradient's component along each row -> (clip) -> Adam -> unit rows -> EMA
    -> (dead latents drawn anew, where that is due)

The released code renormalizes and projects before the step and averages before it too; here the
average is of weights that a user could load: unit rows, after the update.

On a mesh it is the oracle of the others: gradients are averaged over replicas, nothing is sharded
but the latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.autoencoder.base import Autoencoder
from scaling.autoencoder.code import Code
from scaling.autoencoder.dead import DeadLatents
from scaling.autoencoder.decoder_norm import remove_parallel_gradient_, renormalize_rows_
from scaling.train.engine import Accept, StepStats
from scaling.train.engine_parts import ModelHolder, OptimizerSpec, copy_all_checked
from scaling.train.mesh import ALONE, Mesh
from scaling.train.resample import resample_, zero_rows_
from scaling.train.weight_average import WeightAverage

MOMENTS = ("exp_avg", "exp_avg_sq")


class TorchEngine(ModelHolder[Autoencoder]):
    """See `scaling.train.engine.Engine`. Trains every architecture."""

    def __init__(
        self,
        model: Autoencoder,
        optimizer: OptimizerSpec,
        dead_after_tokens: int,
        mesh: Mesh = ALONE,
    ) -> None:
        self.model = model
        self.spec = optimizer
        self.mesh = mesh
        self.params = dict(model.named_parameters())
        self.adam = torch.optim.Adam(
            self.params.values(),
            lr=0.0,
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.eps,
            fused=True,  # ten times the default's speed on CPU, where that loops over small ops
        )
        self.dead = DeadLatents(len(model.w_enc), dead_after_tokens, model.w_enc.device)
        self.average = WeightAverage(self.params, optimizer.ema_decay)
        self.n_updates = 0

    def step(
        self, batch_BD: Tensor, lr: float, *, measure: bool = False, accept: Accept | None = None
    ) -> StepStats:
        self.model.shard.measures = measure
        dead_ids = self.dead.ids()
        code, losses = self.model.encode_with_losses(batch_BD, dead_ids, self.n_updates)
        fired = self.mesh.dp.begin_max_(self.dead.fired(code), "fired latents")
        stats = self.stats(losses, measured=measure or accept is not None)
        if accept is not None and not accept(float(stats.loss)):
            fired.wait()
            return stats._replace(skipped=True)
        self.adam.zero_grad(set_to_none=True)
        losses.total.backward()
        grad_norm = self._finish_gradients(measure)
        self._update(lr, code)
        self.dead.update(fired.wait(), len(batch_BD) * self.mesh.dp.size)
        self._resample(batch_BD)
        return stats._replace(grad_norm=grad_norm)

    def _finish_gradients(self, measure: bool) -> Tensor | None:
        """Average over replicas, project, clip; the norm before that, where it is asked for."""
        grads = {name: param.grad for name, param in self.params.items()}
        under_way = {
            name: self.mesh.dp.begin_sum_(grad, f"{name} gradient")
            for name, grad in grads.items()
            if grad is not None
        }
        for pending in under_way.values():
            pending.wait().div_(self.mesh.dp.size)
        if self.model.spec.gradient_projection:
            assert grads["w_dec"] is not None
            remove_parallel_gradient_(grads["w_dec"], self.model.w_dec)
        if self.spec.clip_norm is None:
            return self._global_norm() if measure else None
        norm = self._global_norm()
        torch.nn.utils.clip_grads_with_norm_(self.params.values(), self.spec.clip_norm, norm)
        return norm

    def _global_norm(self) -> Tensor:
        """Of the gradients of all latents, and of b_pre's, which every shard holds, once."""
        squares = {
            name: torch.linalg.vector_norm(param.grad).square()
            for name, param in self.params.items()
            if param.grad is not None
        }
        replicated = squares.pop("b_pre")
        local = torch.stack(list(squares.values())).sum()
        return (self.mesh.latent.sum_(local, "gradient norm") + replicated).sqrt()

    def _update(self, lr: float, code: Code) -> None:
        self.adam.param_groups[0]["lr"] = lr
        self.adam.step()
        if self.model.spec.decoder_norm:
            renormalize_rows_(self.model.w_dec)
        self.n_updates += 1
        self.model.after_step(code)
        self.average.update()

    @torch.no_grad()
    def _resample(self, batch_BD: Tensor) -> None:
        """Where it is due: draw the dead latents anew, and forget what was learned of them."""
        rule = self.spec.resampling
        if rule is None or not rule.is_due(self.n_updates):
            return
        draws = rule.generator(self.n_updates)
        ids = resample_(self.model, self.dead.ids(), batch_BD, self.mesh, draws)
        per_latent = [name for name in self.params if name != "b_pre"]
        for name in per_latent:
            moments = self.adam.state.get(self.params[name], {})
            zero_rows_([moments[part] for part in MOMENTS if part in moments], ids)
        self.average.restart_(per_latent, ids)
        zero_rows_([self.dead.tokens_since_fired_N], ids)

    def state(self) -> dict[str, Tensor]:
        moments = {
            f"{name}.{part}": tensor.detach().clone()
            for name, param in self.params.items()
            for part, tensor in (self.adam.state.get(param) or _no_moments(param)).items()
        }
        counters = {"tokens_since_fired": self.dead.tokens_since_fired_N.clone()}
        return self.weights() | moments | counters | self.average.state()

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        targets: dict[str, Tensor] = dict(self.params)
        targets["tokens_since_fired"] = self.dead.tokens_since_fired_N
        targets |= dict(self.model.named_buffers())
        copy_all_checked(targets | self.average.targets(), state)
        for name, param in self.params.items():
            self.adam.state[param] = {
                part: state[f"{name}.{part}"].clone().to(param.device)
                for part in (*MOMENTS, "step")
            }
        self.n_updates = int(state["w_enc.step"])
        self.average.n_updates = int(state["ema_updates"])


def _no_moments(param: Tensor) -> dict[str, Tensor]:
    """Adam's state before the first update."""
    zero = torch.zeros_like(param, requires_grad=False)
    return {"step": torch.tensor(0.0), "exp_avg": zero, "exp_avg_sq": zero}
