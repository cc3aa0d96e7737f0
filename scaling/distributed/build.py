"""From a plan to an engine on a mesh of processes."""

from __future__ import annotations

from functools import partial

from scaling.activations.source import ActivationSource
from scaling.distributed.deepspeed_engine import DeepSpeedEngine
from scaling.distributed.latent import MeshShard
from scaling.plan import RunPlan
from scaling.train.build import ENGINES, build_engine
from scaling.train.engine import Engine
from scaling.train.mesh import Mesh


def build_on_mesh(plan: RunPlan, source: ActivationSource, mesh: Mesh) -> Engine:
    """The planned engine at step 0, for this rank's replica and shard."""
    shard = MeshShard(
        mesh,
        plan.autoencoder.n_latents,
        exchange=plan.execution.exchange,
        capacity_factor=plan.numerics.capacity_factor,
    )
    zero = partial(
        DeepSpeedEngine,
        microbatch_tokens=plan.train.batch_tokens // mesh.dp.size,
        zero_stage=plan.execution.zero_stage,
    )
    return build_engine(plan, source, mesh, shard, ENGINES | {"deepspeed": zero})
