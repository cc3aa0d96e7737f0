"""Random autoencoders in portable form, and their equations once more, dense and in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.interchange.model import Facts, LoadedAutoencoder
from scaling.interchange.portable import KINDS, Portable

N, D, K = 96, 24, 5


def random_portable(kind: str = "topk", normalization: str = "none", seed: int = 0) -> Portable:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    w_dec_ND = randn(N, D)
    weights = {
        "w_enc": randn(N, D) * D**-0.5,
        "w_dec": w_dec_ND / w_dec_ND.norm(dim=1, keepdim=True),
        "b_enc": randn(N) * 0.1,
        "b_pre": randn(D) * 0.1,
        **{name: randn(N) * 0.3 for name in KINDS[kind]},
    }
    if "threshold" in weights:
        weights["threshold"] = weights["threshold"].abs()
    return Portable(
        kind=kind,
        weights=weights,
        k=K if kind == "topk" else None,
        normalization=normalization,
        architecture=kind,
    )


def activations(n_tokens: int = 64, seed: int = 1) -> Tensor:
    """Off centre, of very different lengths, [B, D]."""
    generator = torch.Generator().manual_seed(seed)
    x_BD = torch.randn(n_tokens, D, generator=generator)
    return (x_BD + 0.5) * torch.logspace(0, 2, n_tokens)[:, None]


def model_of(portable: Portable) -> LoadedAutoencoder:
    return LoadedAutoencoder(portable, Facts.of(portable, source="", format_name=""))


def by_equations(portable: Portable, x_BD: Tensor) -> tuple[Tensor, Tensor]:
    """(latents [B, N], reconstruction [B, D]), float64."""
    w = {name: tensor.double() for name, tensor in portable.weights.items()}
    x_BD = x_BD.double()
    mean_B1, length_B1 = torch.zeros(len(x_BD), 1), torch.ones(len(x_BD), 1)
    divisor_B1 = length_B1
    match portable.normalization:
        case "unit_norm":
            mean_B1 = x_BD.mean(1, keepdim=True)
            divisor_B1 = length_B1 = (x_BD - mean_B1).square().sum(1, keepdim=True).sqrt()
        case "std":
            mean_B1 = x_BD.mean(1, keepdim=True)
            variance_B1 = (x_BD - mean_B1).square().sum(1, keepdim=True) / (x_BD.shape[1] - 1)
            length_B1, divisor_B1 = variance_B1.sqrt(), variance_B1.sqrt() + 1e-5
        case "constant_norm":
            divisor_B1 = length_B1 = x_BD.square().mean(1, keepdim=True).sqrt()
    centered_BN = ((x_BD - mean_B1) / divisor_B1 - w["b_pre"]) @ w["w_enc"].T
    pre_BN = centered_BN + w["b_enc"]
    match portable.kind:
        case "topk":
            assert portable.k
            kth_B1 = pre_BN.sort(dim=1, descending=True).values[:, portable.k - 1, None]
            z_BN = torch.where(pre_BN >= kth_B1, pre_BN, 0).clamp_min(0)
        case "relu":
            z_BN = pre_BN.clamp_min(0)
        case "jumprelu":
            z_BN = torch.where(pre_BN > w["threshold"], pre_BN, 0).clamp_min(0)
        case _:
            magnitude_BN = (centered_BN * w["r_mag"].exp() + w["b_mag"]).clamp_min(0)
            z_BN = torch.where(pre_BN > 0, magnitude_BN, 0)
    return z_BN, (z_BN @ w["w_dec"] + w["b_pre"]) * length_B1 + mean_B1


def worst(found: Tensor, expected: Tensor) -> float:
    """The largest error of a token, relative to its length."""
    found, expected = found.double(), expected.double()
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-12)).max())
