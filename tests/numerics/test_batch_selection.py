"""The largest of a batch, on one process and over a mesh, against a sort of all values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scaling.autoencoder.batch_selection import select_of_batch
from scaling.autoencoder.shard import Unsharded
from scaling.distributed.latent import MeshShard
from scaling.train.mesh import Mesh
from tests.ranks import run_threads

B, N = 8, 12
DTYPES = [torch.float32, torch.float64]


def by_sorting(values: Tensor, n_kept: int) -> Tensor:
    """By value, then token, then id."""
    order = values.flatten().sort(descending=True, stable=True).indices
    order = order[values.flatten()[order] > 0][:n_kept]
    return torch.zeros(values.numel(), dtype=torch.bool).index_fill(0, order, True).view_as(values)


def problem(dtype: torch.dtype, *, ties: bool) -> Tensor:
    values = torch.randn(B, N, generator=torch.Generator().manual_seed(3), dtype=dtype)
    return (2 * values).round() / 2 if ties else values


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_kept", [1, 7, 24, B * N])
def test_it_keeps_what_a_sort_does(dtype: torch.dtype, n_kept: int, ties: bool) -> None:
    values = problem(dtype, ties=ties)
    kept = select_of_batch(values, n_kept, Unsharded())
    assert kept.equal(by_sorting(values, n_kept))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("dp", "latent"), [(2, 2), (1, 3), (4, 1)])
def test_over_a_mesh_it_keeps_the_same(dp: int, latent: int, ties: bool) -> None:
    values = problem(torch.float32, ties=ties)

    def part(whole: Tensor, mesh: Mesh) -> Tensor:
        return whole.chunk(dp)[mesh.dp.index].chunk(latent, dim=1)[mesh.latent.index]

    def kept(mesh: Mesh) -> bool:
        shard = MeshShard(mesh, N)
        return all(
            select_of_batch(part(values, mesh), n, shard).equal(part(by_sorting(values, n), mesh))
            for n in (5, 24, B * N)
        )

    assert all(run_threads(kept, dp, latent))


def test_extremes() -> None:
    tiny = torch.finfo(torch.float32).smallest_normal / 4
    values = torch.tensor([[-1.0, 0.0, -0.0, tiny], [1e30, torch.inf, 2 * tiny, -torch.inf]])
    assert select_of_batch(values, 3, Unsharded()).tolist() == [
        [False, False, False, False],
        [True, True, True, False],
    ]
    assert int(select_of_batch(values, 99, Unsharded()).sum()) == 4
    assert not select_of_batch(-values.abs(), 3, Unsharded()).any()


def test_what_is_not_a_number_is_kept() -> None:
    values = torch.tensor([[torch.nan, 3.0], [2.0, -torch.nan]])
    assert select_of_batch(values, 2, Unsharded()).tolist() == [[True, False], [False, True]]
