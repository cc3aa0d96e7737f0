"""The Triton passes of a fused step equal autograd, torch.optim.Adam and the published order.

Without a GPU the kernels run under Triton's interpreter, at tiny shapes.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, at the import below

from scaling.autoencoder.decoder_norm import remove_parallel_gradient_, renormalize_rows_
from scaling.kernels import Active, reference
from scaling.kernels.fused import AdamStep, LatentState, LatentSums, RowGradients, Rows
from scaling.kernels.gpu import TritonKernels, kernels
from scaling.kernels.gpu.tuning import default_tuning
from scaling.train.weight_average import WeightAverage

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SCALE = -0.37
BETAS, EPS, LR, DECAY = (0.8, 0.95), 6.25e-10, 3e-3, 0.9


class Case(NamedTuple):
    n_tokens: int
    d_model: int
    n_latents: int
    k: int
    n_extra: int = 0


CASES = {
    "plain": Case(12, 32, 40, 5),
    "odd sizes": Case(7, 36, 45, 3),
    "one token": Case(1, 24, 10, 4),
    "further rows": Case(9, 24, 30, 3, n_extra=6),
}


class Step(NamedTuple):
    """The inputs of one update, all float32."""

    params: dict[str, Tensor]
    centered_BD: Tensor
    active: Active
    extra: RowGradients | None


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator).to(DEVICE)


def make_step(case: Case, seed: int = 0) -> Step:
    generator = torch.Generator().manual_seed(seed)
    w_dec = normal(case.n_latents, case.d_model, generator=generator)
    renormalize_rows_(w_dec)
    params = {
        "w_enc": normal(case.n_latents, case.d_model, generator=generator),
        "w_dec": w_dec,
        "b_enc": 0.1 * normal(case.n_latents, generator=generator),
    }
    centered = normal(case.n_tokens, case.d_model, generator=generator)
    zero = torch.zeros(case.d_model, device=DEVICE)
    found = reference.encode_topk(centered, params["w_enc"], params["b_enc"], case.k, b_pre_D=zero)
    active = Active(found.values_BK.relu(), found.indices_BK.contiguous())
    return Step(params, centered, active, make_extra(case, generator))


def make_extra(case: Case, generator: torch.Generator) -> RowGradients | None:
    if not case.n_extra:
        return None
    ids = torch.randperm(case.n_latents, generator=generator)[: case.n_extra].sort().values
    shape = (case.n_extra, case.d_model)
    return RowGradients(
        ids.to(DEVICE),
        normal(*shape, generator=generator),
        normal(*shape, generator=generator),
        normal(case.n_extra, generator=generator),
    )


def make_state(params: dict[str, Tensor], backend: TritonKernels, *, average: bool) -> LatentState:
    def rows(weight: Tensor) -> Rows:
        zeros = [torch.zeros_like(weight) for _ in range(3)]
        return Rows(weight, zeros[0], zeros[1], zeros[2] if average else None)

    w_enc, w_dec, b_enc = (params[name].clone() for name in ("w_enc", "w_dec", "b_enc"))
    shadow = backend.make_shadow(w_enc, w_dec)
    return LatentState(rows(w_enc), rows(w_dec), rows(b_enc), shadow)


def make_sums(step: Step, backend: TritonKernels, state: LatentState) -> LatentSums:
    found = backend.token_pass(
        step.centered_BD, step.active, state.w_dec.weight, SCALE, state.shadow
    )
    grads, residual = found.grad_values_BK, found.residual_BD
    return LatentSums(step.active, grads, step.centered_BD, residual, SCALE, step.extra)


def adam_step(step: int, *, average: bool, grad_factor: float = 1.0) -> AdamStep:
    return AdamStep(
        lr=LR,
        beta1=BETAS[0],
        beta2=BETAS[1],
        eps=EPS,
        step=step,
        ema_decay=DECAY if average else 0.0,
        grad_factor=grad_factor,
    )


def largest_difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def oracle_gradients(
    step: Step, params: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """By autograd of scale/2 * sum of (x - xhat)^2 and dense code; `dtype` rounds the gathers."""

    def low(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).float()

    values = step.active.values_BK.clone().requires_grad_()
    w_dec = low(params["w_dec"]).clone().requires_grad_()
    recon = reference.decode(Active(values, step.active.indices_BK), w_dec)
    residual = step.centered_BD - recon
    (SCALE * residual.detach() * recon).sum().backward()
    assert values.grad is not None
    grads_BK = values.grad * (values > 0)
    n_latents = len(w_dec)

    def dense(weights: Tensor) -> Tensor:
        zeros = weights.new_zeros(len(weights), n_latents)
        return zeros.scatter(1, step.active.indices_BK, weights)

    grads = {
        "w_enc": dense(grads_BK).T @ low(step.centered_BD),
        "w_dec": SCALE * dense(values.detach()).T @ low(residual.detach()),
        "b_enc": dense(grads_BK).sum(0),
    }
    if step.extra is not None:
        for name, rows in zip(("w_enc", "w_dec", "b_enc"), step.extra[1:], strict=True):
            grads[name][step.extra.ids_A] += rows
    remove_parallel_gradient_(grads["w_dec"], params["w_dec"])
    return grads


def oracle_updates(
    step: Step, n_steps: int, *, factor: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Tensor], WeightAverage]:
    params = {name: tensor.clone().requires_grad_() for name, tensor in step.params.items()}
    adam = torch.optim.Adam(params.values(), lr=LR, betas=BETAS, eps=EPS)
    average = WeightAverage(params, DECAY)
    for _ in range(n_steps):
        weights = {name: param.detach() for name, param in params.items()}
        for name, grad in oracle_gradients(step, weights, dtype).items():
            params[name].grad = factor * grad
        adam.step()
        renormalize_rows_(params["w_dec"].detach())
        average.update()
    return {name: param.detach() for name, param in params.items()}, average


def assert_state(state: LatentState, params: dict[str, Tensor], average: WeightAverage) -> None:
    for name, expected in params.items():
        rows: Rows = getattr(state, name)
        assert largest_difference(rows.weight, expected) < 1e-5
        if rows.average is not None:
            assert largest_difference(rows.average, average.averages[name]) < 1e-5


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_token_pass_equals_autograd(case: Case) -> None:
    step, backend = make_step(case), TritonKernels("float32")
    step.active.values_BK[:, -1] = 0.0  # as the ReLU leaves a latent that is shut
    found = backend.token_pass(step.centered_BD, step.active, step.params["w_dec"], SCALE, None)
    recon = reference.decode(step.active, step.params["w_dec"])
    residual = step.centered_BD - recon
    dots = (residual @ step.params["w_dec"].T).gather(1, step.active.indices_BK)
    assert largest_difference(found.residual_BD, residual) < 1e-5
    expected = SCALE * dots * (step.active.values_BK > 0)
    assert largest_difference(found.grad_values_BK, expected) < 1e-5
    assert bool((found.grad_values_BK[:, -1] == 0).all())
    assert largest_difference(found.squared_error, residual.square().sum()) < 1e-5


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_updates_equal_adam_and_unit_rows(case: Case) -> None:
    step, backend = make_step(case), TritonKernels("float32")
    state = make_state(step.params, backend, average=True)
    grads = oracle_gradients(step, step.params)
    for number in (1, 2):
        sums = make_sums(step, backend, state)
        summary = backend.update_latents(state, sums, adam_step(number, average=True))
        if number == 1:
            norm = sum(grad.square().sum() for grad in grads.values())
            assert largest_difference(summary.squared_norm, torch.as_tensor(norm)) < 1e-5
            b_pre = grads["b_enc"] @ step.params["w_enc"]
            assert largest_difference(summary.b_pre_D, b_pre) < 1e-5
    assert_state(state, *oracle_updates(step, 2))


def test_summary_changes_nothing_and_grad_factor_comes_after_it() -> None:
    step, backend = make_step(CASES["further rows"]), TritonKernels("float32")
    state = make_state(step.params, backend, average=False)
    sums = make_sums(step, backend, state)
    summary = backend.summarize_gradients(state, sums)
    assert all(torch.equal(getattr(state, name).weight, step.params[name]) for name in step.params)
    assert not bool(state.w_enc.exp_avg.any())
    clipped = adam_step(1, average=False, grad_factor=0.01)
    updated = backend.update_latents(state, sums, clipped)
    assert torch.equal(summary.squared_norm, updated.squared_norm)
    assert torch.equal(summary.b_pre_D, updated.b_pre_D)
    # Adam's first step hardly depends on the gradient's size; the second moment does.
    grads = oracle_gradients(step, step.params)
    expected = (1 - BETAS[1]) * (0.01 * grads["w_dec"]).square()
    assert largest_difference(state.w_dec.exp_avg_sq, expected) < 1e-5
    assert_state(state, *oracle_updates(step, 1, factor=0.01))


def test_no_further_rows_is_as_none() -> None:
    step, backend = make_step(CASES["plain"]), TritonKernels("float32")
    none = RowGradients(
        step.active.indices_BK.new_empty(0),
        step.centered_BD.new_empty(0, 32),
        step.centered_BD.new_empty(0, 32),
        step.centered_BD.new_empty(0),
    )
    states = []
    for extra in (None, none):
        state = make_state(step.params, backend, average=False)
        sums = make_sums(step, backend, state)._replace(extra=extra)
        backend.update_latents(state, sums, adam_step(1, average=False))
        states.append(state.w_dec.weight)
    assert torch.equal(*states)


def test_a_latent_that_every_token_chooses_is_cut_and_summed() -> None:
    """Its pairs fill several pieces, the last of them in part; the result does not change."""
    case = Case(37, 24, 12, 2)
    step = make_step(case)
    ids = step.active.indices_BK
    ids[:, 0], ids[:, 1] = 7, torch.where(ids[:, 1] == 7, 3, ids[:, 1])
    backend = TritonKernels("float32", replace(default_tuning("float32"), segment=8))
    state = make_state(step.params, backend, average=True)
    backend.update_latents(state, make_sums(step, backend, state), adam_step(1, average=True))
    assert_state(state, *oracle_updates(step, 1))


def test_bf16_equals_an_oracle_that_rounds_what_is_gathered() -> None:
    """bf16 rows, float32 sums and master weights: 1e-5 against autograd on rounded operands."""
    step, backend = make_step(CASES["further rows"]), TritonKernels("bf16")
    state = make_state(step.params, backend, average=True)
    backend.update_latents(state, make_sums(step, backend, state), adam_step(1, average=True))
    assert_state(state, *oracle_updates(step, 1, dtype=torch.bfloat16))
    for copy, weight in zip(state.shadow, (state.w_enc.weight, state.w_dec.weight), strict=True):
        # The card rounds to the nearest; the interpreter truncates, by up to one part in 2^7.
        tolerance = 2**-7 if DEVICE == "cpu" else 2**-8
        assert bool(((copy.float() - weight).abs() <= tolerance * weight.abs()).all())


@pytest.mark.parametrize("matmul", ["float32", "bf16"])
def test_select_is_rectified_topk_of_the_shadow(matmul: str) -> None:
    step, backend = make_step(CASES["plain"]), TritonKernels(matmul)
    params = {**step.params, "b_enc": step.params["b_enc"] - 6.0}
    shadow = backend.make_shadow(params["w_enc"], params["w_dec"])
    found = backend.select(step.centered_BD, params["w_enc"], params["b_enc"], 5, shadow)
    x, w = step.centered_BD.to(backend.operand).float(), params["w_enc"].to(backend.operand)
    zero = torch.zeros(x.shape[1], device=DEVICE)
    expected = reference.encode_topk(x, w.float(), params["b_enc"], 5, b_pre_D=zero)
    assert torch.equal(found.indices_BK, expected.indices_BK)
    assert largest_difference(found.values_BK, expected.values_BK.relu()) < 1e-5
    assert bool((found.values_BK == 0).any())
    assert bool((found.values_BK > 0).any())


def test_repeats_to_the_bit() -> None:
    step = make_step(CASES["further rows"])
    backend = TritonKernels("float32", replace(default_tuning("float32"), segment=4))
    states = []
    for _ in range(2):
        state = make_state(step.params, backend, average=True)
        backend.update_latents(state, make_sums(step, backend, state), adam_step(1, average=True))
        states.append(state)
    for first, second in zip(states[0][:3], states[1][:3], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_update_without_the_encoder_gradient_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The comparison can fail: gradients of values dropped on the way exceed the tolerance."""
    step, backend = make_step(CASES["plain"]), TritonKernels("float32")
    state = make_state(step.params, backend, average=True)
    honest = kernels.tokens.token_pass

    def dropping(*args: object) -> object:
        found = honest(*args)  # type: ignore[arg-type]
        return found._replace(grad_values_BK=torch.zeros_like(found.grad_values_BK))

    monkeypatch.setattr(kernels.tokens, "token_pass", dropping)
    backend.update_latents(state, make_sums(step, backend, state), adam_step(1, average=True))
    expected, _ = oracle_updates(step, 1)
    assert largest_difference(state.w_enc.weight, expected["w_enc"]) > 1e-4
    assert largest_difference(state.w_dec.weight, expected["w_dec"]) < 1e-5
