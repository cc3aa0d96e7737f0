"""States such as engines have, without an engine."""

from __future__ import annotations

import torch
from torch import Tensor

from scaling.train.mesh import Mesh
from scaling.train.shard_files import is_per_latent

N, D = 24, 5


def full_state(seed: int = 0, n_latents: int = N) -> dict[str, Tensor]:
    """Of all rows."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "w_enc": (n_latents, D),
        "w_dec": (n_latents, D),
        "b_enc": (n_latents,),
        "b_pre": (D,),
    }
    state = {
        f"{name}{part}": torch.randn(shape, generator=draw)
        for name, shape in shapes.items()
        for part in ("", ".exp_avg", ".exp_avg_sq", ".ema")
    }
    state |= {f"{name}.step": torch.tensor(7.0 + seed) for name in shapes}
    state["w_dec.ema"] = state["w_dec.ema"].bfloat16()  # another width in the same file
    state["tokens_since_fired"] = torch.randint(10**12, (n_latents,), generator=draw)
    return state | {"ema_updates": torch.tensor(7 + seed)}


def rows_of(state: dict[str, Tensor], rows: range) -> dict[str, Tensor]:
    """What a rank with these rows holds."""
    return {
        name: tensor[rows.start : rows.stop].clone() if is_per_latent(name) else tensor.clone()
        for name, tensor in state.items()
    }


def local_state(mesh: Mesh, seed: int = 0, n_latents: int = N) -> dict[str, Tensor]:
    return rows_of(full_state(seed, n_latents), mesh.local_rows(n_latents))


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """To the bit, names, types and all."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )
