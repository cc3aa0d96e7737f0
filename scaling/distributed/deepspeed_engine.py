"""The engine of many replicas: DeepSpeed's ZeRO over the dp axis, our shards over the latent axis.

ZeRO keeps one slice of the optimizer's state (stage 1), and of the gradients (stage 2), per
replica. It also keeps a master copy of the weights from which it overwrites what the model holds,
so whoever changes a weight in place (here: unit decoder rows) has to change that copy too.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from scaling.autoencoder.base import Losses
from scaling.autoencoder.code import Code
from scaling.autoencoder.dead import DeadLatents
from scaling.autoencoder.decoder_norm import remove_parallel_gradient_, renormalize_rows_
from scaling.autoencoder.topk import TopKAutoencoder, is_plain_topk
from scaling.distributed.process_group import ProcessMesh
from scaling.distributed.topology import Topology
from scaling.train.engine import Accept, StepStats
from scaling.train.engine_parts import ModelHolder, OptimizerSpec, copy_all_checked
from scaling.train.weight_average import WeightAverage

MOMENTS = ("exp_avg", "exp_avg_sq")
SHARDED = ("w_enc", "w_dec", "b_enc")


class DeepSpeedEngine(ModelHolder[TopKAutoencoder]):
    """See `scaling.train.engine.Engine`. float32 weights; `zero_stage` is 1 or 2."""

    def __init__(
        self,
        model: TopKAutoencoder,
        optimizer: OptimizerSpec,
        dead_after_tokens: int,
        mesh: ProcessMesh,
        *,
        microbatch_tokens: int,
        zero_stage: int = 1,
    ) -> None:
        """ValueError where the model is not the plain TopK one, or latents are to be resampled."""
        if not is_plain_topk(model):
            raise ValueError(f"the DeepSpeed engine trains TopK as published, not {model.spec}")
        if optimizer.resampling is not None:
            raise ValueError("the DeepSpeed engine resamples no latents: the torch engine does")
        self.model = model
        self.spec = optimizer
        self.mesh, self.watch = mesh, mesh.watch
        self.params = dict(model.named_parameters())
        for name in SHARDED:
            # Else the global norm counts one shard's gradient only, silently.
            self.params[name].tensor_model_parallel = True  # type: ignore[attr-defined]
        model.w_dec.register_hook(self._without_parallel_part)
        config = _config(optimizer, microbatch_tokens, zero_stage, model.w_enc.device)
        self.engine = _initialize(_Step(model), self._adam(), config, mesh)
        self.zero: Any = self.engine.optimizer
        self.dead = DeadLatents(len(model.w_enc), dead_after_tokens, model.w_enc.device)
        self.average = WeightAverage(self.params, optimizer.ema_decay)

    def step(
        self, batch_BD: Tensor, lr: float, *, measure: bool = False, accept: Accept | None = None
    ) -> StepStats:
        self.model.shard.measures = measure
        active, losses = self.engine(batch_BD, self.dead.ids())
        fired = self.mesh.dp.begin_max_(self.dead.fired(active), "fired latents")
        stats = self.stats(losses, measured=measure or accept is not None)
        if accept is not None and not accept(float(stats.loss)):
            fired.wait()
            return stats._replace(skipped=True)
        self.zero.param_groups[0]["lr"] = lr
        with self.watch("DeepSpeed's reduction of gradients over dp"):
            self.engine.backward(losses.total)
        with self.watch("DeepSpeed's update over dp"):
            self.engine.step()
        if self.zero.overflow:
            self._poison()
        self._renormalize()
        self.average.update()
        self.dead.update(fired.wait(), len(batch_BD) * self.mesh.dp.size)
        if not measure and self.spec.clip_norm is None:
            return stats
        norm = self.engine.get_global_grad_norm()
        return stats._replace(grad_norm=torch.as_tensor(norm))

    def _without_parallel_part(self, grad_ND: Tensor) -> Tensor:
        """What the decoder's gradient becomes before ZeRO averages it: projecting is linear."""
        grad_ND = grad_ND.clone()
        remove_parallel_gradient_(grad_ND, self.model.w_dec.detach())
        return grad_ND

    @torch.no_grad()
    def _renormalize(self) -> None:
        renormalize_rows_(self.model.w_dec)
        self._write_master("w_dec")

    @torch.no_grad()
    def _poison(self) -> None:
        """ZeRO leaves out, without a word, an update whose gradients are not finite.

        On one process the weights are not finite after it, and the run ends as diverged; so here.
        """
        for name, param in self.params.items():
            param.fill_(torch.nan)
            self._write_master(name)

    def _write_master(self, name: str) -> None:
        """Have ZeRO's master copy follow a parameter that was changed in place."""
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(self.params[name], self.params[name].data)

    def _adam(self) -> torch.optim.Adam:
        spec = self.spec
        betas = (spec.beta1, spec.beta2)
        return torch.optim.Adam(self.params.values(), lr=0.0, betas=betas, eps=spec.eps, fused=True)

    # ------------------------------------------------------------------ state

    def state(self) -> dict[str, Tensor]:
        counters = {"tokens_since_fired": self.dead.tokens_since_fired_N.clone()}
        steps = self._steps()
        with self.watch("DeepSpeed's gathering of moments over dp"):
            moments = {
                f"{name}.{part}": _full_moment(param, part) if steps else torch.zeros_like(param)
                for name, param in self.params.items()
                for part in MOMENTS
            }
        moments |= {f"{name}.step": steps.clone() for name in self.params}
        return self.weights() | moments | counters | self.average.state()

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        targets: dict[str, Tensor] = dict(self.params)
        targets["tokens_since_fired"] = self.dead.tokens_since_fired_N
        copy_all_checked(targets | self.average.targets(), state)
        self._make_moments(state["w_enc.step"])
        for name, param in self.params.items():
            self._write_master(name)
            for part in MOMENTS:
                moment = state[f"{name}.{part}"].to(param.device)
                safe_set_full_optimizer_state(param, moment, part)
        self.average.n_updates = int(state["ema_updates"])

    def _steps(self) -> Tensor:
        """Updates taken, as Adam counts them."""
        states = list(self.zero.optimizer.state.values())
        return states[0]["step"].cpu() if states and "step" in states[0] else torch.tensor(0.0)

    def _make_moments(self, steps: Tensor) -> None:
        """Adam's state, which it makes itself only at its first update."""
        for partition in self.zero.single_partition_of_fp32_groups:
            self.zero.optimizer.state[partition] = {
                "step": steps.clone().to(partition.device),
                **{part: torch.zeros_like(partition) for part in MOMENTS},
            }
        self.zero._hp_optimizer_states_linked = False  # the parameters know the state before
        self.zero._lazy_init_hp_params_optimizer_state()


def _full_moment(param: nn.Parameter, part: str) -> Tensor:
    """A moment of a whole parameter, put together from the replicas' slices."""
    from deepspeed.utils import safe_get_full_optimizer_state

    moment = safe_get_full_optimizer_state(param, part)
    assert moment is not None
    return moment.clone()


class _Step(nn.Module):
    """What DeepSpeed calls: the model's training pass as a module's forward."""

    def __init__(self, model: TopKAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BD: Tensor, dead: Tensor) -> tuple[Code, Losses]:
        return self.model.encode_with_losses(x_BD, dead)


def _initialize(
    module: nn.Module, adam: torch.optim.Adam, config: dict[str, Any], mesh: ProcessMesh
) -> Any:
    """DeepSpeed's engine, without the extension that it would otherwise compile on a CPU."""
    import deepspeed
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=adam,
        config=config,
        mpu=Topology(mesh),
        dist_init_required=False,
    )
    return engine


def _config(
    optimizer: OptimizerSpec, microbatch_tokens: int, zero_stage: int, device: torch.device
) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": microbatch_tokens,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.clip_norm or 0.0,
        "zero_allow_untested_optimizer": True,  # torch's own fused Adam
        "zero_optimization": {
            "stage": zero_stage,
            "overlap_comm": device.type == "cuda",
        },
        "steps_per_print": 2**31,
    }
