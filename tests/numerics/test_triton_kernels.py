"""The Triton backend equals the dense oracle, on every output and every gradient.

Without a GPU the kernels run under Triton's interpreter, at tiny shapes. In float32 the oracle is
the reference itself; in bf16 it is the reference on operands rounded to bf16.
"""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, at the import below

from scaling.kernels import Active, load_kernels, reference
from scaling.kernels.gpu import TritonKernels
from scaling.kernels.gpu.encode import plan
from scaling.kernels.gpu.tuning import default_tuning
from tests import kernel_cases
from tests.kernel_cases import Case, Outcome, largest_difference, run

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = replace(
    default_tuning("float32"),
    block_tokens=16,
    block_latents=32,
    block_d=32,
    streaming_from=64,
    seed_divisor=64,
    segment=16,
    dense_below=4,
)
"""Blocks so small that a tiny problem streams, on the card too."""


CASES = {
    "streams": Case(11, 32, 256, 2),
    "streams, odd sizes": Case(7, 36, 531, 3),
    "k is 1": Case(9, 24, 131, 1),
    "one token": Case(1, 72, 200, 1),
    "dense products": Case(9, 24, 60, 7),
    "k is n": Case(5, 16, 33, 33),
}


def inputs(case: Case, seed: int = 0) -> dict[str, Tensor]:
    return kernel_cases.inputs(case, seed=seed, device=DEVICE)


def assert_equal(found: Outcome, expected: Outcome) -> None:
    assert torch.equal(found.indices, expected.indices)
    assert largest_difference(found, expected) < 1e-5


def topk(backend: TritonKernels, tensors: dict[str, Tensor], k: int) -> Active:
    return backend.encode_topk(
        tensors["x"], tensors["w_enc"], tensors["b_enc"], k, b_pre_D=tensors["b_pre"]
    )


def integers(case: Case, seed: int, low: int = -2, high: int = 3) -> dict[str, Tensor]:
    """Exactly representable: many pre-activations are equal, and none is rounded."""
    tensors, generator = inputs(case), torch.Generator().manual_seed(seed)
    for name in ("x", "w_enc"):
        drawn = torch.randint(low, high, tensors[name].shape, generator=generator)
        tensors[name] = drawn.float().to(DEVICE)
    tensors["b_enc"].zero_()
    tensors["b_pre"].fill_(1.0)
    return tensors


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_reference(case: Case) -> None:
    assert (plan(case.n_latents, case.k, SMALL) is None) == (case.n_latents < 64)
    tensors, backend = inputs(case), TritonKernels("float32", SMALL)
    assert_equal(run(backend, tensors, case.k), run(reference, tensors, case.k))
    assert backend.redone_rows == 0


def test_is_what_load_kernels_gives() -> None:
    backend = load_kernels("triton", "bf16")
    assert isinstance(backend, TritonKernels)
    assert backend.operand == torch.bfloat16
    with pytest.raises(ValueError, match="matmul=tf32 is not one of float32, bf16"):
        TritonKernels("tf32")


@pytest.mark.parametrize("case", [CASES["streams"], CASES["dense products"]])
def test_bf16_equals_the_reference_on_rounded_operands(case: Case) -> None:
    """Products of bf16 operands are exact in float32; only the order of the sums differs."""
    tensors = inputs(case)
    centered = tensors["x"] - tensors["b_pre"]
    rounded = {name: tensor.bfloat16().float() for name, tensor in tensors.items()}
    rounded |= {"x": centered.bfloat16().float(), "b_pre": torch.zeros_like(tensors["b_pre"])}
    rounded["b_enc"] = tensors["b_enc"]
    found = topk(TritonKernels("bf16", SMALL), tensors, case.k)
    zero = rounded["b_pre"]
    expected = reference.encode_topk(
        rounded["x"], rounded["w_enc"], rounded["b_enc"], case.k, b_pre_D=zero
    )
    assert torch.equal(found.indices_BK, expected.indices_BK)
    scale = expected.values_BK.abs().max()
    assert float((found.values_BK - expected.values_BK).abs().max() / scale) < 1e-5
    plain = topk(TritonKernels("float32", SMALL), tensors, case.k)
    assert float((plain.values_BK - expected.values_BK).abs().max() / scale) > 1e-4


@pytest.mark.parametrize("k", [1, 3, 20])
def test_ties_go_to_the_lowest_id(k: int) -> None:
    tensors = integers(Case(12, 4, 256, k), seed=k)
    found = topk(TritonKernels("float32", SMALL), tensors, k)
    expected = topk(reference, tensors, k)  # type: ignore[arg-type]
    assert torch.equal(found.indices_BK, expected.indices_BK)
    assert torch.equal(found.values_BK, expected.values_BK)


@pytest.mark.parametrize("n_latents", [50, 256])
def test_all_equal_keeps_exactly_k(n_latents: int) -> None:
    backend, tensors = TritonKernels("float32", SMALL), inputs(Case(5, 24, n_latents, 2))
    tensors["w_enc"].zero_()
    tensors["b_enc"].fill_(-0.0)
    tensors["b_enc"][::2] = 0.0  # zeros of both signs are equal
    found = topk(backend, tensors, 2)
    assert found.indices_BK.tolist() == [[0, 1]] * 5
    assert backend.redone_rows == 5


def test_rows_whose_candidates_do_not_fit_are_redone_exactly() -> None:
    """One row has a thousand values above its first threshold, the others a handful."""
    case = Case(6, 24, 1024, 2)
    tensors, backend = inputs(case), TritonKernels("float32", SMALL)
    slope = torch.linspace(0.0, 1.0, 1024, device=DEVICE)
    direction = torch.nn.functional.one_hot(torch.tensor(3), 24).float().to(DEVICE)
    tensors["w_enc"][:, 3] = slope
    tensors["b_pre"].zero_()
    tensors["x"][:, 3] = 0.0
    tensors["x"][4] = 1000 * direction
    assert_equal(run(backend, tensors, 2), run(reference, tensors, 2))
    assert backend.redone_rows == 1


def test_fewer_than_k_positive_leaves_the_rest_without_gradient() -> None:
    tensors = inputs(CASES["streams"])
    tensors["b_enc"] = torch.full_like(tensors["b_enc"], -1000.0)
    tensors["b_enc"][3] = 1000.0
    found = run(TritonKernels("float32", SMALL), tensors, 2)
    assert_equal(found, run(reference, tensors, 2))
    assert bool((found.values[:, 1:] < 0).all())
    assert int((found.grad_b_enc != 0).sum()) == 1


def test_chunks_of_tokens_do_not_change_the_result() -> None:
    tensors = inputs(CASES["streams"])
    whole = run(TritonKernels("float32", SMALL), tensors, 2)
    cut = run(TritonKernels("float32", replace(SMALL, tile_bytes=4096)), tensors, 2)
    assert_equal(cut, whole)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # numpy, for the interpreter
def test_a_token_that_is_not_a_number_spoils_no_other() -> None:
    tensors, backend = inputs(CASES["streams"]), TritonKernels("float32", SMALL)
    expected = topk(backend, tensors, 2)
    tensors["x"][4] = float("nan")
    found = topk(backend, tensors, 2)
    others = torch.arange(11, device=DEVICE) != 4
    assert torch.equal(found.indices_BK[others], expected.indices_BK[others])
    assert bool(found.values_BK[4].isnan().all())
    assert backend.redone_rows == 1


def test_repeats_to_the_bit() -> None:
    tensors = inputs(CASES["streams, odd sizes"])
    first, second = (run(TritonKernels("float32", SMALL), tensors, 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_tokens() -> None:
    found = topk(TritonKernels("float32", SMALL), inputs(Case(0, 8, 100, 2)), 2)
    assert found.values_BK.shape == found.indices_BK.shape == (0, 2)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    n_tokens=st.integers(1, 6),
    d_model=st.integers(1, 20),
    n_latents=st.integers(1, 300),
    data=st.data(),
)
def test_any_shape_of_integers_is_exact(
    n_tokens: int, d_model: int, n_latents: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, min(n_latents, 9)))
    tensors = integers(Case(n_tokens, d_model, n_latents, k), seed=k, low=-9, high=10)
    found = topk(TritonKernels("float32", SMALL), tensors, k)
    expected = topk(reference, tensors, k)  # type: ignore[arg-type]
    assert torch.equal(found.indices_BK, expected.indices_BK)
    assert torch.equal(found.values_BK, expected.values_BK)


def test_a_backward_that_drops_the_encoder_gradient_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check can fail: a known defect, patched in, exceeds the tolerance."""
    honest = TritonKernels.latent_rows

    def dropping(self: TritonKernels, pairs: Active, x_BD: Tensor, n_latents: int) -> Tensor:
        return honest(self, pairs, x_BD, n_latents) * (pairs.values_BK.min() >= 0)

    monkeypatch.setattr(TritonKernels, "latent_rows", dropping)
    tensors = inputs(CASES["dense products"])
    found = run(TritonKernels("float32", SMALL), tensors, 7)
    assert largest_difference(found, run(reference, tensors, 7)) > 1e-2


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs one CUDA device")
@pytest.mark.parametrize("matmul", ["float32", "bf16"])
def test_native_shapes(matmul: str) -> None:
    """Large enough for every native block size; near ties may swap, so values are compared."""
    tensors = inputs(Case(300, 768, 20000, 32))
    found = topk(TritonKernels(matmul), tensors, 32)
    dtype = torch.float32 if matmul == "float32" else torch.bfloat16
    centered = (tensors["x"] - tensors["b_pre"]).to(dtype).double()
    pre = centered @ tensors["w_enc"].to(dtype).double().T + tensors["b_enc"].double()
    best = pre.sort(dim=1, descending=True).values[:, :32]
    assert float((found.values_BK - best).abs().max() / best.abs().max()) < 1e-5
    assert float((pre.gather(1, found.indices_BK) - best).abs().max() / best.abs().max()) < 1e-5
    assert bool((found.indices_BK.sort(dim=1).values.diff(dim=1) > 0).all())
