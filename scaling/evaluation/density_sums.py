"""One pass over the held-out vectors that counts what each latent does: `DensitySums`.

Shapes: B vectors, D = d_model, N latents, P active (vector, latent) pairs, T positions, H bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scaling.autoencoder.code import Code, Dense
from scaling.evaluation.material import Material
from scaling.evaluation.metric import Told
from scaling.interchange.model import LoadedAutoencoder
from scaling.interchange.normalization import normalized

CHUNK = 256
LOWEST, HIGHEST, PER_OCTAVE = -16, 8, 2
"""Bins of z_i |w_i|: half octaves from 2^-16 to 2^8; the first and the last also hold what is
beyond."""
N_BINS = (HIGHEST - LOWEST) * PER_OCTAVE


@dataclass
class DensitySums:
    """Over the vectors seen, in the order of the text; on the CPU, wherever the work was done."""

    count_N: Tensor
    """int64: vectors on which it is active."""
    value_N: Tensor
    """float64: sum of its activations."""
    largest_N: Tensor
    """float32."""
    gain_N: Tensor
    """float64: sum over vectors of the rise of squared error if it alone were 0."""
    last_N: Tensor
    """int64: the last vector on which it was active; -1 = none."""
    histogram_NH: Tensor
    """int32: activations times the norm of the decoder row, by bin."""
    by_position_N2T: Tensor
    """int32: vectors on which it is active, by half of the contexts and position within one."""
    kept_T: Tensor
    """int64: vectors by position."""
    total: float
    """Sum of squared distances of the vectors from their mean."""
    n_vectors: int = 0

    @classmethod
    def empty(cls, n_latents: int, kept_T: Tensor, total: float) -> DensitySums:
        def zeros(*more: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(n_latents, *more, dtype=dtype)

        return cls(
            count_N=zeros(dtype=torch.int64),
            value_N=zeros(dtype=torch.float64),
            largest_N=zeros(dtype=torch.float32),
            gain_N=zeros(dtype=torch.float64),
            last_N=zeros(dtype=torch.int64) - 1,
            histogram_NH=zeros(N_BINS, dtype=torch.int32),
            by_position_N2T=zeros(2, len(kept_T), dtype=torch.int32),
            kept_T=kept_T,
            total=total,
        )

    @property
    def frequency_N(self) -> Tensor:
        """float64."""
        return self.count_N.double() / self.n_vectors

    @property
    def importance_N(self) -> Tensor:
        """Rise of normalized MSE if it alone were 0, float64."""
        return self.gain_N / self.total

    def add(self, x_BD: Tensor, place_B: Tensor, code: Code, w_dec_ND: Tensor) -> None:
        """Vectors less b_pre, their positions (plus T in the second half of the contexts), and
        their code."""
        row_P, latent_P, value_P = active_pairs(code)
        w_dec_PD = w_dec_ND[latent_P]
        recon_BD = torch.zeros_like(x_BD).index_add_(0, row_P, value_P[:, None] * w_dec_PD)
        size_P = value_P * w_dec_PD.norm(dim=1)
        along_P = ((x_BD - recon_BD)[row_P] * w_dec_PD).sum(dim=1)
        gain_P = (2 * value_P * along_P + size_P.square()).cpu()
        row_P, latent_P, value_P = row_P.cpu(), latent_P.cpu(), value_P.cpu()
        ones_P = torch.ones_like(latent_P)
        self.count_N.index_add_(0, latent_P, ones_P)
        self.value_N.index_add_(0, latent_P, value_P.double())
        self.gain_N.index_add_(0, latent_P, gain_P.double())
        self.largest_N.scatter_reduce_(0, latent_P, value_P, "amax")
        self.last_N.scatter_reduce_(0, latent_P, self.n_vectors + row_P, "amax")
        _count(self.histogram_NH, latent_P, bin_of(size_P.cpu()))
        _count(self.by_position_N2T.flatten(1), latent_P, place_B[row_P])
        self.n_vectors += len(x_BD)


def summed(autoencoder: LoadedAutoencoder, material: Material, told: Told) -> DensitySums:
    """The sums of one autoencoder over all vectors kept of the material."""
    kept_CT = torch.cat([batch.kept_CT.cpu() for batch in material.batches()])
    kind = autoencoder.facts.normalization
    total = material.once(f"squares about the mean, {kind}", lambda m: _total(m, kind))
    sums = DensitySums.empty(autoencoder.facts.n_latents, kept_CT.sum(dim=0), total)
    done, n_tokens = 0, kept_CT.shape[1]
    for batch in material.batches():
        context_R, position_R = batch.kept_CT.cpu().nonzero(as_tuple=True)
        place_R = position_R + n_tokens * (2 * (done + context_R) >= len(kept_CT))
        x_RD = batch.residual_CTD[batch.kept_CT].float()
        for x_BD, place_B in zip(x_RD.split(CHUNK), place_R.split(CHUNK), strict=True):
            x_BD = x_BD.to(autoencoder.b_pre)
            input_BD, _ = normalized(x_BD, kind)
            code = autoencoder.encode(x_BD).code
            sums.add(input_BD - autoencoder.b_pre, place_B, code, autoencoder.w_dec)
        done += len(batch.ids_CT)
        told(done, len(kept_CT))
    return sums


def active_pairs(code: Code) -> tuple[Tensor, Tensor, Tensor]:
    """Vector, latent and value of each active pair, [P]."""
    row_P, place_P = (code[0] > 0).nonzero(as_tuple=True)
    latent_P = place_P if isinstance(code, Dense) else code.indices_BK[row_P, place_P]
    return row_P, latent_P, code[0][row_P, place_P]


def bin_of(size_P: Tensor) -> Tensor:
    """Which bin a positive number is in, int64."""
    return ((size_P.log2() - LOWEST) * PER_OCTAVE).floor().clamp(0, N_BINS - 1).long()


def edges() -> Tensor:
    """Of the bins, float64 [H + 1]."""
    return 2.0 ** (LOWEST + torch.arange(N_BINS + 1, dtype=torch.float64) / PER_OCTAVE)


def _count(table_NH: Tensor, latent_P: Tensor, column_P: Tensor) -> None:
    width = table_NH.shape[1]
    ones_P = torch.ones(len(latent_P), dtype=table_NH.dtype)
    table_NH.view(-1).index_add_(0, latent_P * width + column_P, ones_P)


def _total(material: Material, kind: str) -> float:
    inputs = [
        normalized(batch.residual_CTD[batch.kept_CT].float(), kind)[0]
        for batch in material.batches()
    ]
    mean_D = sum(part.double().sum(dim=0) for part in inputs) / sum(len(part) for part in inputs)
    return sum(float((part - mean_D).square().sum()) for part in inputs)
