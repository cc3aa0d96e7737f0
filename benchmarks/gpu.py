"""How far is a training step from what the card can do, and is it right there?

    python -m benchmarks.gpu                    checks, ceilings, steps; a few minutes on one GPU
    python -m benchmarks.gpu --out FILE.md      also write the tables
    python -m benchmarks.gpu --tiny             does it all still work? (toy sizes, no GPU)

Needs torch, triton and numpy only. The floor of a step adds what it cannot do without, at the
rates measured on this card: the encoder's products (2 B d n operations), one gather of the active
decoder rows, two for the gradient sums, and Adam's 26 bytes for each parameter. Sparse and dense
torch steps are written as well as plain torch allows; steps that do not fit in memory at once are
done in chunks of tokens.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, at the import below

import triton

from scaling.autoencoder.decoder_norm import remove_parallel_gradient_, renormalize_rows_
from scaling.autoencoder.losses import auxiliary_loss
from scaling.kernels import Active
from scaling.kernels.fused import AdamStep, LatentState, LatentSums, RowGradients, Rows
from scaling.kernels.gpu import TritonKernels
from scaling.kernels.gpu.segments import sort_by_latent
from scaling.kernels.torch_sparse import TorchKernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALE = -1e-5
LR, BETAS, EPS = 1e-4, (0.9, 0.999), 6.25e-10
ADAM_BYTES = 26
PRE_BYTES = 2**31
"""Largest tensor of pre-activations that the torch steps make at a time."""


class Shape(NamedTuple):
    n_tokens: int
    d_model: int
    n_latents: int
    k: int


class Ceilings(NamedTuple):
    flops: float
    """bf16 matrix products, operations per second."""
    bandwidth: float
    """Copy, bytes read plus bytes written per second."""


SHAPES = [Shape(131072, 768, n, 32) for n in (32768, 131072, 1048576)]
AUX_SHAPE, K_AUX, DEAD = SHAPES[1], 512, 0.05
CHECKS = [
    Shape(512, 768, 32768, 32),
    Shape(257, 576, 12289, 17),
    Shape(128, 2304, 9000, 64),
    Shape(300, 72, 40000, 1),
    Shape(64, 768, 100000, 512),
    Shape(33, 36, 1000, 1000),
    Shape(1, 23, 9001, 5),
]
TINY_SHAPES = [Shape(16, 32, 256, 4)]
TINY_CHECKS = [Shape(9, 32, 256, 2), Shape(5, 23, 45, 3)]


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator(device=DEVICE).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=DEVICE)


def make_weights(shape: Shape) -> dict[str, Tensor]:
    w_dec = normal(shape.n_latents, shape.d_model, seed=1)
    renormalize_rows_(w_dec)
    return {"w_enc": w_dec.clone(), "w_dec": w_dec, "b_enc": 0.01 * normal(len(w_dec), seed=2)}


def seconds(function: Callable[[], Any], repeats: int = 5) -> float:
    """Median over repeats, after two runs that warm up; without a GPU, of one run."""
    if DEVICE == "cpu":
        repeats = 1
    for _ in range(2 if DEVICE == "cuda" else 0):
        function()
    times = []
    for _ in range(repeats):
        if DEVICE == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def relative(found: Tensor, expected: Tensor) -> float:
    """Max difference over max value."""
    scale = expected.abs().max().clamp_min(1e-30)
    return float((found.double() - expected.double()).abs().max() / scale)


# Correctness, against float64 on the operands as the kernels see them.


def check(shape: Shape, matmul: str, *, ties: bool = False) -> dict[str, float]:
    backend, weights = TritonKernels(matmul), make_weights(shape)
    x = normal(shape.n_tokens, shape.d_model, seed=3)
    if ties:
        x, weights["w_enc"] = x.round(), weights["w_enc"].mul(20).round().clamp(-2, 2)
        weights["b_enc"].zero_()
    shadow = backend.make_shadow(weights["w_enc"], weights["w_dec"])
    low = {name: tensor.to(backend.operand).double() for name, tensor in weights.items()}
    low["b_enc"] = weights["b_enc"].double()
    active = backend.select(x, weights["w_enc"], weights["b_enc"], shape.k, shadow)
    pre = x.to(backend.operand).double() @ low["w_enc"].T + low["b_enc"]
    best = torch.sort(pre, dim=1, descending=True, stable=True)
    errors = {
        # Rounding swaps near ties; then the values at the chosen ids are still the largest.
        "values": relative(active.values_BK, best.values[:, : shape.k].relu()),
        "ids": relative(pre.gather(1, active.indices_BK).relu(), active.values_BK),
        "repeated ids": float((active.indices_BK.sort(dim=1).values.diff(dim=1) == 0).sum()),
    }
    if ties:
        errors["wrong ids"] = float((active.indices_BK != best.indices[:, : shape.k]).sum())
    return errors | check_step(shape, backend, weights, x, active, shadow)


def check_step(
    shape: Shape,
    backend: TritonKernels,
    weights: dict[str, Tensor],
    x: Tensor,
    active: Active,
    shadow: Any,
) -> dict[str, float]:
    found = backend.token_pass(x, active, weights["w_dec"], SCALE, shadow)
    rows = weights["w_dec"].to(backend.operand).double()
    code = x.new_zeros(len(x), shape.n_latents, dtype=torch.float64)
    recon = code.scatter(1, active.indices_BK, active.values_BK.double()) @ rows
    residual = x.double() - recon
    dots = SCALE * (residual @ rows.T).gather(1, active.indices_BK) * (active.values_BK > 0)
    state = make_state(weights, shadow)
    sums = LatentSums(active, found.grad_values_BK, x, found.residual_BD, SCALE, None)
    backend.update_latents(state, sums, adam_step(1))

    def summed(pairs: Tensor, x_BD: Tensor) -> Tensor:
        dense = code.scatter(1, active.indices_BK, pairs.double())
        return dense.T @ x_BD.to(backend.operand).double()

    w_dec = make_weights(shape)["w_dec"].double()
    grad_dec = SCALE * summed(active.values_BK, found.residual_BD)
    remove_parallel_gradient_(grad_dec, w_dec)
    return {
        "residual": relative(found.residual_BD, residual),
        "grad_values": relative(found.grad_values_BK, dots),
        "squared_error": relative(found.squared_error, residual.square().sum()),
        "grad w_enc": relative(
            state.w_enc.exp_avg / (1 - BETAS[0]), summed(found.grad_values_BK, x)
        ),
        "grad w_dec": relative(state.w_dec.exp_avg / (1 - BETAS[0]), grad_dec),
        "unit rows": float((state.w_dec.weight.double().norm(dim=1) - 1).abs().max()),
    }


def run_checks(shapes: list[Shape]) -> list[str]:
    lines = ["| check | matmul | worst of all outputs | |", "|---|---|---|---|"]
    cases = [(shape, matmul, False) for shape in shapes for matmul in ("float32", "bf16")]
    cases.append((shapes[0]._replace(d_model=16), "bf16", True))
    for shape, matmul, ties in cases:
        name = f"B={shape.n_tokens} d={shape.d_model} n={shape.n_latents} k={shape.k}"
        name += " (integers, ties)" if ties else ""
        try:
            errors = check(shape, matmul, ties=ties)
            worst = max(errors, key=lambda key: errors[key])
            verdict = "ok" if errors[worst] < 1e-5 else "WRONG"
            lines.append(f"| {name} | {matmul} | {worst}: {errors[worst]:.1e} | {verdict} |")
        except Exception as error:
            lines.append(f"| {name} | {matmul} | {failure(error)} | FAILED |")
        release()
    return lines


# Ceilings.


def measure_ceilings(shape: Shape, *, tiny: bool) -> tuple[Ceilings, list[str]]:
    size, n_copied = (64, 2**16) if tiny else (8192, 2**31)
    square = normal(size, size, seed=4).bfloat16()
    square_rate = 2 * size**3 / seconds(lambda: square @ square)
    x = normal(min(shape.n_tokens, 16384), shape.d_model, seed=5).bfloat16()
    w = normal(min(shape.n_latents, 131072), shape.d_model, seed=6).bfloat16()
    out = x.new_empty(len(x), len(w))
    taken = seconds(lambda: torch.mm(x, w.T, out=out))
    own_rate = 2 * x.numel() * len(w) / taken
    source = torch.randint(0, 255, (n_copied,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    bandwidth = 2 * n_copied / seconds(lambda: target.copy_(source))
    best = max(square_rate, own_rate)
    lines = [
        f"bf16 matrix product: {square_rate / 1e12:.0f} TFLOP/s at {size}^3, "
        f"{own_rate / 1e12:.0f} TFLOP/s at the encoder's shape ({len(x)} x {shape.d_model} x "
        f"{len(w)}); copy: {bandwidth / 1e12:.2f} TB/s, read plus written."
    ]
    return Ceilings(best, bandwidth), lines


def floor_seconds(shape: Shape, ceilings: Ceilings) -> dict[str, float]:
    gather = shape.n_tokens * shape.k * shape.d_model * 2 / ceilings.bandwidth
    n_weights = 2 * shape.n_latents * shape.d_model
    parts = {
        "encode": shape.n_tokens * n_weights / ceilings.flops,
        "tokens": gather,
        "latents": 2 * gather + ADAM_BYTES * n_weights / ceilings.bandwidth,
    }
    return parts | {"step": sum(parts.values())}


# Steps. Each returns seconds of its phases and of the whole.


def adam_step(step: int) -> AdamStep:
    return AdamStep(lr=LR, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, step=step, ema_decay=0.0)


def make_state(weights: dict[str, Tensor], shadow: Any) -> LatentState:
    def rows(weight: Tensor) -> Rows:
        return Rows(weight, torch.zeros_like(weight), torch.zeros_like(weight), None)

    return LatentState(*(rows(weights[name]) for name in ("w_enc", "w_dec", "b_enc")), shadow)


class FusedStep:
    """Select, one pass over the tokens, one over the latents; AuxK by autograd if asked for."""

    def __init__(self, shape: Shape, dead: Tensor | None = None) -> None:
        self.shape, self.dead = shape, dead
        self.kernels = TritonKernels("bf16")
        weights = make_weights(shape)
        shadow = self.kernels.make_shadow(weights["w_enc"], weights["w_dec"])
        self.state = make_state(weights, shadow)
        self.b_pre = torch.zeros(shape.d_model, device=DEVICE)
        self.x = normal(shape.n_tokens, shape.d_model, seed=7)
        self.n_steps = 0

    def select(self) -> None:
        self.centered = self.x - self.b_pre
        state = self.state
        self.active = self.kernels.select(
            self.centered, state.w_enc.weight, state.b_enc.weight, self.shape.k, state.shadow
        )

    def tokens(self) -> None:
        self.found = self.kernels.token_pass(
            self.centered, self.active, self.state.w_dec.weight, SCALE, self.state.shadow
        )

    def aux(self) -> RowGradients | None:
        if self.dead is None:
            return None
        leaves = [
            rows.weight[self.dead].requires_grad_()
            for rows in (self.state.w_enc, self.state.w_dec, self.state.b_enc)
        ]
        k = min(K_AUX, len(self.dead))
        code = self.kernels.encode_topk(self.x, leaves[0], leaves[2], k, b_pre_D=self.b_pre)
        active = Active(code.values_BK.relu(), code.indices_BK)
        recon = self.kernels.decode(active, leaves[1])
        auxiliary_loss(self.found.residual_BD, recon).backward()
        grads = [leaf.grad for leaf in leaves]
        return RowGradients(self.dead, *grads)  # type: ignore[arg-type]

    def latents(self, extra: RowGradients | None = None) -> None:
        self.n_steps += 1
        grads, residual = self.found.grad_values_BK, self.found.residual_BD
        sums = LatentSums(self.active, grads, self.centered, residual, SCALE, extra)
        summary = self.kernels.update_latents(self.state, sums, adam_step(self.n_steps))
        self.b_pre -= LR * (SCALE * residual.sum(dim=0) - summary.b_pre_D)

    def __call__(self) -> None:
        self.select()
        self.tokens()
        self.latents(self.aux())

    def times(self) -> dict[str, float]:
        self()
        phases = {"step": seconds(self), "encode": seconds(self.select)}
        phases["tokens"] = seconds(self.tokens)
        if self.dead is not None:
            phases["aux"] = seconds(self.aux)
        phases["latents"] = seconds(self.latents)
        ids, tuning = self.active.indices_BK, self.kernels.tuning
        phases["of which sort"] = seconds(lambda: sort_by_latent(ids, self.shape.n_latents, tuning))
        phases["redone rows"] = self.kernels.redone_rows
        return phases


class SparseStep:
    """torch.topk of stored bf16 pre-activations, gathers, sums over sorted segments, fused Adam."""

    def __init__(self, shape: Shape) -> None:
        self.shape, self.kernels = shape, TorchKernels()
        self.weights = make_weights(shape)
        self.x = normal(shape.n_tokens, shape.d_model, seed=7)
        for weight in self.weights.values():
            weight.requires_grad_()
        self.adam = torch.optim.Adam(self.weights.values(), lr=LR, betas=BETAS, fused=True)

    @torch.no_grad()
    def select(self) -> None:
        w_enc, b_enc = (self.weights[name].bfloat16() for name in ("w_enc", "b_enc"))
        chunk = max(1, PRE_BYTES // (2 * self.shape.n_latents))
        parts = [
            torch.topk(F.linear(x.bfloat16(), w_enc, b_enc), self.shape.k)
            for x in self.x.split(chunk)
        ]
        values = torch.cat([part.values for part in parts]).float().relu_()
        self.active = Active(values, torch.cat([part.indices for part in parts]))

    @torch.no_grad()
    def gradients(self) -> None:
        kernels, active, w_dec = self.kernels, self.active, self.weights["w_dec"]
        residual = self.x - kernels.token_rows(active, w_dec)
        grads = SCALE * kernels.dot_products(residual, w_dec, active.indices_BK)
        pairs = Active(grads * (active.values_BK > 0), active.indices_BK)
        n_latents = self.shape.n_latents
        self.weights["w_enc"].grad = kernels.latent_rows(pairs, self.x, n_latents)
        self.weights["b_enc"].grad = kernels.latent_sums(pairs, n_latents)
        self.weights["w_dec"].grad = kernels.latent_rows(active, residual, n_latents).mul_(SCALE)

    @torch.no_grad()
    def update(self) -> None:
        w_dec = self.weights["w_dec"]
        assert w_dec.grad is not None
        remove_parallel_gradient_(w_dec.grad, w_dec)
        self.adam.step()
        renormalize_rows_(w_dec.detach())

    def __call__(self) -> None:
        self.select()
        self.gradients()
        self.update()

    def times(self) -> dict[str, float]:
        self()
        return {
            "step": seconds(self, 3),
            "encode": seconds(self.select, 3),
            "tokens and sums": seconds(self.gradients, 3),
            "Adam": seconds(self.update, 3),
        }


class DenseStep(SparseStep):
    """Five matrix products by autograd under bf16 autocast, in as many chunks as must be.

    Forward and backward of one chunk are timed and multiplied; the update is timed once.
    """

    def chunk(self) -> None:
        n_tokens = max(1, min(self.shape.n_tokens, PRE_BYTES // (4 * self.shape.n_latents)))
        x, weights = self.x[:n_tokens], self.weights
        with torch.autocast(DEVICE, torch.bfloat16):
            pre = F.linear(x, weights["w_enc"], weights["b_enc"])
            best = torch.topk(pre, self.shape.k)
            code = torch.zeros_like(pre).scatter(1, best.indices, best.values.relu())
            loss = (x - code @ weights["w_dec"]).float().square().sum() * SCALE
        loss.backward()
        self.n_chunks = self.shape.n_tokens / n_tokens

    def times(self) -> dict[str, float]:
        one = seconds(self.chunk, 3)
        update = seconds(self.update, 3)
        products = one * self.n_chunks
        return {"step": products + update, "products": products, "Adam": update}


# The report.


def failure(error: Exception) -> str:
    traceback.print_exception(error)
    return f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"


def release() -> None:
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_row(
    name: str, make: Callable[[], Any], shape: Shape, floor: float
) -> tuple[str, float]:
    """One line of the table, and the seconds of the step (NaN if it failed)."""
    release()
    label = f"| {shape.n_latents} | {name} |"
    try:
        step = make()
        times = step.times()
        peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0
    except Exception as error:
        return f"{label} {failure(error)} | | | | |", float("nan")
    taken = times.pop("step")
    split = ", ".join(
        f"{part} {1e3 * value:.2f}" if part != "redone rows" else f"{part} {value:.0f}"
        for part, value in times.items()
    )
    rate = shape.n_tokens / taken / 1e6
    line = f"{label} {1e3 * taken:.1f} | {taken / floor:.2f} | {rate:.2f} | {peak:.1f} | {split} |"
    print(line, flush=True)
    return line, taken


def run_steps(shapes: list[Shape], aux: Shape, ceilings: Ceilings) -> list[str]:
    lines = [
        "| n | step | ms | x floor | M tokens/s | peak GiB | ms by phase |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in shapes:
        floor = floor_seconds(shape, ceilings)
        parts = ", ".join(f"{part} {1e3 * floor[part]:.2f}" for part in list(floor)[:-1])
        rate = shape.n_tokens / floor["step"] / 1e6
        label = f"| {shape.n_latents} | floor | {1e3 * floor['step']:.1f}"
        lines.append(f"{label} | 1.00 | {rate:.2f} | | {parts} |")
        makers: dict[str, Callable[[], Any]] = {
            "fused": lambda shape=shape: FusedStep(shape),
            "sparse torch": lambda shape=shape: SparseStep(shape),
            "dense torch": lambda shape=shape: DenseStep(shape),
        }
        if shape == aux:
            dead = torch.arange(0, shape.n_latents, round(1 / DEAD), device=DEVICE)
            makers["fused, 5% dead, AuxK"] = lambda shape=shape, dead=dead: FusedStep(shape, dead)
        for name, make in makers.items():
            lines.append(measure_row(name, make, shape, floor["step"])[0])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--no-checks", action="store_true", help="measure only")
    args = parser.parse_args()
    shapes, checks = (TINY_SHAPES, TINY_CHECKS) if args.tiny else (SHAPES, CHECKS)
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{platform.machine()} CPU"
    report = [
        f"{device}, torch {torch.__version__}, triton {triton.__version__}, "
        f"Python {platform.python_version()}; B={shapes[0].n_tokens} d={shapes[0].d_model} "
        f"k={shapes[0].k}, medians.",
        "",
    ]
    ceilings, lines = measure_ceilings(shapes[min(1, len(shapes) - 1)], tiny=args.tiny)
    report += [*lines, ""]
    if not args.no_checks:
        report += [*run_checks(checks), ""]
    report += run_steps(shapes, TINY_SHAPES[0] if args.tiny else AUX_SHAPE, ceilings)
    print("\n".join(["", *report]))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(report) + "\n")


if __name__ == "__main__":
    main()
