"""Every backend equals the dense oracle, on every output and every gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaling.kernels import Active, Kernels, load_kernels, torch_sparse
from tests.kernel_cases import Case, inputs, largest_difference, run

REFERENCE = load_kernels("reference")

BACKENDS = {
    "torch": lambda: load_kernels("torch"),
    "cpu float32": lambda: load_kernels("cpu", "float32"),
    "cpu onednn": lambda: load_kernels("cpu", "onednn"),
    "cpu certified": lambda: load_kernels("cpu", "certified"),
}
"""Those with the result of float32. Triton's has a file of its own."""


CASES = {
    "plain": Case(24, 32, 200, 7),
    "k is 1": Case(17, 16, 64, 1),
    "k is n": Case(9, 16, 33, 33),
    "odd sizes": Case(13, 23, 301, 5),
    "one token": Case(1, 8, 100, 3),
    "sparse in n": Case(3, 12, 1000, 2),
    "dense pays": Case(16, 24, 40, 8),
    "d 576": Case(20, 576, 700, 16),
    "d 768": Case(20, 768, 1030, 32),
    "d 2304": Case(5, 2304, 300, 4),
    "several tiles": Case(1100, 24, 2100, 5),
}


@pytest.fixture(params=BACKENDS.values(), ids=BACKENDS.keys())
def backend(request: pytest.FixtureRequest) -> Kernels:
    return request.param()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_reference(backend: Kernels, case: Case) -> None:
    tensors = inputs(case, torch.float32)
    found = run(backend, tensors, case.k)
    expected = run(REFERENCE, tensors, case.k)
    assert torch.equal(found.indices, expected.indices)
    # A few hundred roundings in each sum; 1e-5 of the largest value in float32.
    assert largest_difference(found, expected) < 1e-5


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_torch_equals_reference_in_float64(case: Case) -> None:
    tensors = inputs(case, torch.float64)
    found = run(load_kernels("torch"), tensors, case.k)
    expected = run(REFERENCE, tensors, case.k)
    assert torch.equal(found.indices, expected.indices)
    assert largest_difference(found, expected) < 1e-13


def integers(case: Case, seed: int) -> dict[str, Tensor]:
    """Exactly representable: pre-activations of many latents are equal, and none rounds."""
    generator = torch.Generator().manual_seed(seed)
    tensors = inputs(case, torch.float32)
    for name in ("x", "w_enc"):
        tensors[name] = torch.randint(-2, 3, tensors[name].shape, generator=generator).float()
    tensors["b_enc"] = torch.zeros(case.n_latents)
    tensors["b_pre"] = torch.ones(case.d_model)
    return tensors


@pytest.mark.parametrize("k", [1, 3, 8, 20])
def test_ties_go_to_the_lowest_id(backend: Kernels, k: int) -> None:
    tensors = integers(Case(12, 4, 64, k), seed=k)
    found = run(backend, tensors, k)
    expected = run(REFERENCE, tensors, k)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.values, expected.values)
    pre_BN = (tensors["x"] - 1) @ tensors["w_enc"].T
    brute = [sorted(range(64), key=lambda j: (-float(row[j]), j))[:k] for row in pre_BN]
    assert found.indices.tolist() == brute


@given(
    n_tokens=st.integers(1, 40),
    d_model=st.integers(1, 70),
    n_latents=st.integers(1, 300),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**16),
    tied=st.booleans(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_shape_equals_reference(
    n_tokens: int, d_model: int, n_latents: int, share: float, seed: int, tied: bool
) -> None:
    """Integer inputs are full of ties; for the others no two values are equal."""
    case = Case(n_tokens, d_model, n_latents, max(1, round(share * n_latents)))
    # A single value may be a difference of large ones: then float32 has no five digits to compare.
    assume(tied or n_tokens * case.k >= 16)
    tensors = integers(case, seed) if tied else inputs(case, torch.float32, seed)
    expected = run(REFERENCE, tensors, case.k)
    for name, make in BACKENDS.items():
        found = run(make(), tensors, case.k)
        if tied:
            assert torch.equal(found.indices, expected.indices), name
        assert largest_difference(found, expected) < 1e-5, name


def test_all_equal_keeps_the_first_k(backend: Kernels) -> None:
    """Every latent is as good as any other: more candidates than any buffer holds."""
    tensors = inputs(Case(5, 8, 3000, 8), torch.float32)
    tensors["w_enc"] = torch.ones_like(tensors["w_enc"])
    tensors["b_enc"] = torch.zeros_like(tensors["b_enc"])
    found = run(backend, tensors, 8)
    assert found.indices.tolist() == [list(range(8))] * 5


def test_topk_of_equal_values_keeps_exactly_k() -> None:
    active = torch_sparse.topk_lowest_id(torch.zeros(5, 100), 8)
    assert active.indices_BK.tolist() == [list(range(8))] * 5


def test_fewer_than_k_positive_leaves_the_rest_without_gradient(backend: Kernels) -> None:
    tensors = inputs(CASES["plain"], torch.float32)
    tensors["b_enc"] = torch.full_like(tensors["b_enc"], -1000.0)
    tensors["b_enc"][3] = 1000.0
    found = run(backend, tensors, 7)
    expected = run(REFERENCE, tensors, 7)
    assert largest_difference(found, expected) < 1e-5
    assert bool((found.values[:, 1:] < 0).all())
    assert int((found.grad_b_enc != 0).sum()) == 1


def test_tiles_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs(CASES["plain"], torch.float64)
    whole = run(load_kernels("torch"), tensors, 7)
    monkeypatch.setattr(torch_sparse, "TILE_BYTES", 3 * 200 * 8)
    tiled = run(load_kernels("torch"), tensors, 7)
    assert torch.equal(whole.indices, tiled.indices)
    assert largest_difference(tiled, whole) < 1e-14


def test_gradcheck_of_both_operations() -> None:
    tensors = inputs(Case(4, 5, 60, 3), torch.float64)
    names = ("x", "w_enc", "b_enc", "b_pre", "w_dec")

    def recon(x: Tensor, w_enc: Tensor, b_enc: Tensor, b_pre: Tensor, w_dec: Tensor) -> Tensor:
        kernels = load_kernels("torch")
        return kernels.decode(kernels.encode_topk(x, w_enc, b_enc, 3, b_pre_D=b_pre), w_dec)

    arguments = tuple(tensors[name].requires_grad_() for name in names)
    assert torch.autograd.gradcheck(recon, arguments, eps=1e-7, atol=1e-5)


def test_repeats_to_the_bit(backend: Kernels) -> None:
    tensors = inputs(CASES["odd sizes"], torch.float32)
    first, second = (run(backend, tensors, 5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def multi_topk_gradients(kernels: Kernels, tensors: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    """L(k) + L(4k) / 8 (Gao et al. 2024, appendix A.3), both from one selection of 4k latents."""
    leaf = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    found = kernels.encode_topk(
        leaf["x"], leaf["w_enc"], leaf["b_enc"], 4 * k, b_pre_D=leaf["b_pre"]
    )
    values, ids = torch.relu(found.values_BK), found.indices_BK

    def error(width: int) -> Tensor:
        recon = kernels.decode(Active(values[:, :width], ids[:, :width]), leaf["w_dec"])
        return (recon + leaf["b_pre"] - tensors["x"]).square().mean()

    (error(k) + error(4 * k) / 8).backward()
    return {name: tensor.grad for name, tensor in leaf.items() if tensor.grad is not None}


def dropped_gradient(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """The defect of a known package: the encoder's rows learn from some losses only."""
    honest = kernels.latent_rows  # type: ignore[attr-defined]

    def dropping(pairs: Active, x_BD: Tensor, n_latents: int) -> Tensor:
        kept = Active(pairs.values_BK.clone(), pairs.indices_BK)
        kept.values_BK[:, pairs.values_BK.shape[1] // 4 :] = 0
        return honest(kept, x_BD, n_latents)

    monkeypatch.setattr(kernels, "latent_rows", dropping)


def gradient_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(
        float((found[name] - grad).abs().max() / grad.abs().max())
        for name, grad in expected.items()
    )


def test_multi_topk_equals_reference(backend: Kernels) -> None:
    tensors = inputs(Case(60, 48, 400, 20), torch.float32)
    found = multi_topk_gradients(backend, tensors, 5)
    assert gradient_difference(found, multi_topk_gradients(REFERENCE, tensors, 5)) < 1e-5


def test_multi_topk_without_the_encoders_gradient_is_noticed(
    backend: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = inputs(Case(60, 48, 400, 20), torch.float32)
    dropped_gradient(backend, monkeypatch)
    found = multi_topk_gradients(backend, tensors, 5)
    assert gradient_difference(found, multi_topk_gradients(REFERENCE, tensors, 5)) > 1e-3


def test_a_backward_that_drops_the_encoder_gradient_is_noticed(
    backend: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check can fail: the defect, patched in, exceeds the tolerance."""
    dropped_gradient(backend, monkeypatch)
    tensors = inputs(CASES["plain"], torch.float32)
    found, expected = run(backend, tensors, 7), run(REFERENCE, tensors, 7)
    assert largest_difference(found, expected) > 1e-2


def test_unknown_backend_is_an_error() -> None:
    with pytest.raises(ValueError, match="kernels=fast is not one of"):
        load_kernels("fast")
