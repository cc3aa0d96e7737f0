"""Every backend equals the dense oracle, on every output and every gradient."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from scaling.kernels import Active, Kernels, load_kernels, torch_sparse

REFERENCE = load_kernels("reference")


class Case(NamedTuple):
    n_tokens: int
    d_model: int
    n_latents: int
    k: int


CASES = {
    "plain": Case(24, 32, 200, 7),
    "k is 1": Case(17, 16, 64, 1),
    "k is n": Case(9, 16, 33, 33),
    "odd sizes": Case(13, 23, 301, 5),
    "one token": Case(1, 8, 100, 3),
    "sparse in n": Case(3, 12, 1000, 2),
    "dense pays": Case(16, 24, 40, 8),
}


class Outcome(NamedTuple):
    """Everything a caller can observe of one forward and backward pass."""

    values: Tensor
    indices: Tensor
    recon: Tensor
    grad_x: Tensor
    grad_w_enc: Tensor
    grad_b_enc: Tensor
    grad_b_pre: Tensor
    grad_w_dec: Tensor


def inputs(case: Case, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return {
        "x": normal(case.n_tokens, case.d_model),
        "w_enc": normal(case.n_latents, case.d_model),
        "b_enc": 0.1 * normal(case.n_latents),
        "b_pre": 0.1 * normal(case.d_model),
        "w_dec": normal(case.n_latents, case.d_model),
    }


def run(kernels: Kernels, tensors: dict[str, Tensor], k: int, *, rectify: bool = True) -> Outcome:
    """One pass whose loss weighs every reconstruction and every value differently."""
    leaf = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    candidates = kernels.encode_topk(
        leaf["x"], leaf["w_enc"], leaf["b_enc"], k, b_pre_D=leaf["b_pre"]
    )
    values = torch.relu(candidates.values_BK) if rectify else candidates.values_BK
    recon = kernels.decode(Active(values, candidates.indices_BK), leaf["w_dec"])
    weights = torch.linspace(0.5, 1.5, recon.numel(), dtype=recon.dtype).view_as(recon)
    loss = (weights * (recon - tensors["x"]).square()).sum() + 0.1 * values.square().sum()
    loss.backward()
    grads = {name: tensor.grad for name, tensor in leaf.items()}
    assert all(grad is not None for grad in grads.values())
    return Outcome(
        candidates.values_BK.detach(),
        candidates.indices_BK,
        recon.detach(),
        *(grads[name] for name in ("x", "w_enc", "b_enc", "b_pre", "w_dec")),  # type: ignore[misc]
    )


def largest_difference(found: Outcome, expected: Outcome) -> float:
    """Max difference over max value, the worst of all float tensors."""
    return max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for name, a, b in zip(Outcome._fields, found, expected, strict=True)
        if name != "indices"
    )


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # A few hundred roundings in each sum; 1e-5 of the largest value in float32.
    [(torch.float32, 1e-5), (torch.float64, 1e-13)],
    ids=["float32", "float64"],
)
def test_equals_reference(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    tensors = inputs(case, dtype)
    found = run(load_kernels("torch"), tensors, case.k)
    expected = run(REFERENCE, tensors, case.k)
    assert torch.equal(found.indices, expected.indices)
    assert largest_difference(found, expected) < tolerance


@pytest.mark.parametrize("k", [1, 3, 8, 20])
def test_ties_go_to_the_lowest_id(k: int) -> None:
    """Exactly representable integers: pre-activations of many latents are equal, none rounds."""
    generator = torch.Generator().manual_seed(k)
    tensors = inputs(Case(12, 4, 64, k), torch.float32)
    for name in ("x", "w_enc"):
        tensors[name] = torch.randint(-2, 3, tensors[name].shape, generator=generator).float()
    tensors["b_enc"], tensors["b_pre"] = torch.zeros(64), torch.ones(4)
    found = run(load_kernels("torch"), tensors, k)
    expected = run(REFERENCE, tensors, k)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.values, expected.values)
    pre_BN = (tensors["x"] - 1) @ tensors["w_enc"].T
    brute = [sorted(range(64), key=lambda j: (-float(row[j]), j))[:k] for row in pre_BN]
    assert found.indices.tolist() == brute


def test_all_equal_keeps_exactly_k() -> None:
    active = torch_sparse.topk_lowest_id(torch.zeros(5, 100), 8)
    assert active.indices_BK.tolist() == [list(range(8))] * 5


def test_fewer_than_k_positive_leaves_the_rest_without_gradient() -> None:
    tensors = inputs(CASES["plain"], torch.float64)
    tensors["b_enc"] = torch.full_like(tensors["b_enc"], -1000.0)
    tensors["b_enc"][3] = 1000.0
    found = run(load_kernels("torch"), tensors, 7)
    expected = run(REFERENCE, tensors, 7)
    assert largest_difference(found, expected) < 1e-13
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


def test_repeats_to_the_bit() -> None:
    tensors = inputs(CASES["odd sizes"], torch.float32)
    first, second = (run(load_kernels("torch"), tensors, 5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_backward_that_drops_the_encoder_gradient_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check can fail: the defect of a known package, patched in, exceeds the tolerance."""
    honest = torch_sparse._latent_rows

    def dropping(pairs: Active, x_BD: Tensor, n_latents: int) -> Tensor:
        return honest(pairs, x_BD, n_latents) * (pairs.values_BK.min() >= 0)

    monkeypatch.setattr(torch_sparse, "_latent_rows", dropping)
    tensors = inputs(CASES["plain"], torch.float64)
    found, expected = run(load_kernels("torch"), tensors, 7), run(REFERENCE, tensors, 7)
    assert largest_difference(found, expected) > 1e-2


def test_unknown_backend_is_an_error() -> None:
    with pytest.raises(ValueError, match="kernels=fast is not one of"):
        load_kernels("fast")
