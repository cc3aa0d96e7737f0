"""What each engine's step costs on one process: the same batches, steps interleaved.

    python -m benchmarks.engine_cost [--out docs/benchmarks/engine_cost_cpu_DATE.md]

The plain engine with torch's kernels and with ours, the fused engine, and DeepSpeed's ZeRO-1 on a
mesh of one rank, where it shards nothing and its bookkeeping is all there is to see.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scaling.autoencoder import TopKAutoencoder, TopKSpec
from scaling.autoencoder.init import initial_weights
from scaling.distributed.deepspeed_engine import DeepSpeedEngine
from scaling.distributed.latent import MeshShard
from scaling.distributed.process_group import ProcessMesh, join, leave, make_mesh
from scaling.hardware import fingerprint
from scaling.kernels import load_kernels
from scaling.train.engine import Engine
from scaling.train.engine_parts import OptimizerSpec
from scaling.train.fused_engine import FusedEngine
from scaling.train.torch_engine import TorchEngine

OPTIMIZER = OptimizerSpec(beta1=0.9, beta2=0.999, eps=6.25e-10, clip_norm=None, ema_decay=0.999)
LR = 1e-4
WARMUP, STEPS = 3, 20


class Size(NamedTuple):
    name: str
    n_latents: int
    d_model: int
    batch_tokens: int
    k: int


SIZES = (
    Size("small", 1024, 576, 256, 16),
    Size("medium", 16384, 768, 1024, 32),
)
ENGINES = ("torch, torch kernels", "torch, cpu kernels", "fused", "deepspeed ZeRO-1, cpu kernels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a Markdown file; printed in any case")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    mesh = _mesh_of_one()
    text = "\n".join([_head(options.threads), *(_table(size, mesh) for size in SIZES)])
    leave()
    print(text)
    if options.out:
        options.out.write_text(text)


def _mesh_of_one() -> ProcessMesh:
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ.update(alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    meeting = Path(tempfile.mkdtemp()) / "meeting"
    join(device="cpu", timeout_s=60, init_method=f"file://{meeting}")
    return make_mesh(1, 1, device="cpu")


def _head(threads: int) -> str:
    machine = f"{fingerprint('cpu', 'cpu')}; {threads} threads; float32"
    return (
        f"# Cost of a step by engine, one process\n\n{machine}; no latent dead, no clipping, "
        f"average kept. Milliseconds per step, median and range of {STEPS} steps, engines "
        "interleaved; ratio to the fused engine's median.\n"
    )


def _table(size: Size, mesh: ProcessMesh) -> str:
    engines = {name: _engine(name, size, mesh) for name in ENGINES}
    times_ms: dict[str, list[float]] = {name: [] for name in ENGINES}
    for step in range(WARMUP + STEPS):
        batch_BD = _batch(size, step)
        for name, engine in engines.items():
            times_ms[name].append(_timed_ms(engine, batch_BD))
    kept = {name: times[WARMUP:] for name, times in times_ms.items()}
    fused_ms = statistics.median(kept["fused"])
    n, d, batch, k = size[1:]
    lines = [
        f"\n## {size.name}: n={n} d={d} B={batch} k={k}\n",
        "| engine | median ms | range ms | ratio |",
        "|---|---|---|---|",
    ]
    for name, times in kept.items():
        median = statistics.median(times)
        spread = f"{min(times):.1f} to {max(times):.1f}"
        lines.append(f"| {name} | {median:.1f} | {spread} | {median / fused_ms:.2f} |")
    return "\n".join(lines) + "\n"


def _engine(name: str, size: Size, mesh: ProcessMesh) -> Engine:
    kernels = load_kernels(*(("torch",) if name == ENGINES[0] else ("cpu", "float32")))
    spec = TopKSpec(
        d_model=size.d_model,
        n_latents=size.n_latents,
        k=size.k,
        k_aux=256,
        aux_coef=1 / 32,
        mean_predictor_mse=1 / size.d_model,
    )
    b_pre_D = torch.zeros(size.d_model)
    weights = initial_weights(size.n_latents, b_pre_D, tied=True, seed=0, dtype=torch.float32)
    shard = MeshShard(mesh, size.n_latents)
    model = TopKAutoencoder(spec, kernels, weights, shard)
    if name.startswith("torch"):
        return TorchEngine(model, OPTIMIZER, 2**62, mesh)
    if name == "fused":
        return FusedEngine(model, OPTIMIZER, 2**62, mesh)
    return DeepSpeedEngine(model, OPTIMIZER, 2**62, mesh, microbatch_tokens=size.batch_tokens)


def _batch(size: Size, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    batch_BD = torch.randn(size.batch_tokens, size.d_model, generator=generator)
    return torch.nn.functional.normalize(batch_BD, dim=1)


def _timed_ms(engine: Engine, batch_BD: Tensor) -> float:
    started_s = time.perf_counter()
    _ = float(engine.step(batch_BD, LR).loss)
    return 1000 * (time.perf_counter() - started_s)


if __name__ == "__main__":
    main()
