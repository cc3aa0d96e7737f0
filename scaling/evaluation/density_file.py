"""density.npz: what is known of each latent's activations, for plots and for the viewer.

frequency    float32 [N]     share of vectors on which it is active
mean         float32 [N]     of its activations where it is active; 0 = it never was
largest      float32 [N]
importance   float32 [N]     rise of normalized MSE if it alone were 0
last         int64   [N]     the last vector on which it was active, -1 = none
histogram    int32   [N, H]  activations times the norm of the decoder row, by bin
edges        float64 [H + 1] of the bins: half octaves; the first and last hold what is beyond
by_position  int32   [N, T]  vectors on which it is active, by position in the context
kept         int64   [T]     vectors by position
position     float32 [N]     bits that a firing gives about the position
layout       float32 [N, 2]  of the decoder rows, see clusters.py
    identity     text            of the numbers in evaluation.json that it goes with
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scaling.evaluation.density_sums import DensitySums, edges
from scaling.storage.atomic import atomic_path

FILE_NAME = "density.npz"


def write_density(
    path: Path, sums: DensitySums, bits_N: Tensor, layout_N2: Tensor, *, identity: str
) -> None:
    """Replace the file, at once and whole.

    Raises:
        UserError: a full disk.
    """
    arrays: dict[str, NDArray[Any]] = {
        "frequency": sums.frequency_N.float().numpy(),
        "mean": (sums.value_N / sums.count_N.clamp_min(1)).float().numpy(),
        "largest": sums.largest_N.numpy(),
        "importance": sums.importance_N.float().numpy(),
        "last": sums.last_N.numpy(),
        "histogram": sums.histogram_NH.numpy(),
        "edges": edges().numpy(),
        "by_position": sums.by_position_N2T.sum(dim=1, dtype=torch.int32).numpy(),
        "kept": sums.kept_T.numpy(),
        "position": bits_N.float().numpy(),
        "layout": layout_N2.float().numpy(),
        "identity": np.array(identity),
    }
    with atomic_path(path) as temp, temp.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
