"""One forward and backward pass of a backend, and how far two such passes are apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scaling.kernels import Active, Kernels


class Case(NamedTuple):
    n_tokens: int
    d_model: int
    n_latents: int
    k: int


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


def inputs(
    case: Case, dtype: torch.dtype = torch.float32, seed: int = 0, device: str = "cpu"
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).to(device)

    return {
        "x": normal(case.n_tokens, case.d_model),
        "w_enc": normal(case.n_latents, case.d_model),
        "b_enc": 0.1 * normal(case.n_latents),
        "b_pre": 0.1 * normal(case.d_model),
        "w_dec": normal(case.n_latents, case.d_model),
    }


def run(kernels: Kernels, tensors: dict[str, Tensor], k: int) -> Outcome:
    """One pass whose loss weighs every reconstruction and every value differently."""
    leaf = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    candidates = kernels.encode_topk(
        leaf["x"], leaf["w_enc"], leaf["b_enc"], k, b_pre_D=leaf["b_pre"]
    )
    values = torch.relu(candidates.values_BK)
    recon = kernels.decode(Active(values, candidates.indices_BK), leaf["w_dec"])
    weights = torch.linspace(
        0.5, 1.5, recon.numel(), dtype=recon.dtype, device=recon.device
    ).view_as(recon)
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
