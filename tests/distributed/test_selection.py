"""The k largest over shards are the k largest: ids, ties, hot shards, odd sizes, 512 shards."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scaling import budget
from scaling.distributed import selection
from scaling.distributed.latent import MeshShard
from scaling.kernels import Active
from scaling.kernels.reference import encode_topk
from scaling.train.mesh import Mesh
from tests.distributed import defects
from tests.ranks import run_threads

EXCHANGES = ["gather", "candidates", "butterfly"]


def candidates_of(pre_BN: Tensor, rows: range, k: int) -> Active:
    """A shard's, by a stable sort: largest first, then lowest id; global ids."""
    local_BM = pre_BN[:, rows.start : rows.stop]
    values, ids = local_BM.sort(dim=1, descending=True, stable=True)
    return Active(values[:, :k], ids[:, :k] + rows.start)


def select(
    pre_BN: Tensor, k: int, shards: int, exchange: str, capacity_factor: float | None = None
) -> tuple[Tensor, list[MeshShard], list[Mesh]]:
    """Which latents are selected, [B, N] bool, by shards in threads."""
    n_latents = pre_BN.shape[1]

    def on_shard(mesh: Mesh) -> tuple[Tensor, MeshShard, Mesh]:
        shard = MeshShard(mesh, n_latents, exchange=exchange, capacity_factor=capacity_factor)
        shard.measures = True
        rows = mesh.local_rows(n_latents)
        widest = min(k, len(rows))
        # Distinct marks instead of the values, so that a kept value of 0 is seen as kept.
        found = candidates_of(pre_BN, rows, widest)
        marks = Active(found.values_BK.clone().requires_grad_(), found.indices_BK)
        kept = shard.select(marks, k, widest)
        kept.values_BK.sum().backward()
        assert marks.values_BK.grad is not None
        mine = torch.zeros(pre_BN.shape, dtype=torch.bool)
        mine.scatter_(1, found.indices_BK, marks.values_BK.grad > 0)
        return mine, shard, mesh

    results = run_threads(on_shard, 1, shards)
    selected = torch.stack([mine for mine, _, _ in results]).any(dim=0)
    return selected, [shard for _, shard, _ in results], [mesh for _, _, mesh in results]


def expected(pre_BN: Tensor, k: int) -> Tensor:
    """The definition: the reference kernels' selection on one process."""
    eye = torch.eye(pre_BN.shape[1], dtype=pre_BN.dtype)
    zero = torch.zeros(pre_BN.shape[1], dtype=pre_BN.dtype)
    ids = encode_topk(pre_BN, eye, zero, k, b_pre_D=zero).indices_BK
    return torch.zeros(pre_BN.shape, dtype=torch.bool).scatter(1, ids, True)


def integers(n_tokens: int, n_latents: int, top: int, seed: int = 0) -> Tensor:
    """Few distinct values: ties everywhere, exact in any arithmetic."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, top, (n_tokens, n_latents), generator=generator).float()


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize(
    ("n_latents", "k", "shards"), [(64, 5, 4), (48, 1, 2), (24, 24, 4), (40, 9, 8)]
)
def test_ties_go_to_the_lowest_id_wherever_it_lives(
    n_latents: int, k: int, shards: int, exchange: str
) -> None:
    for top in (1, 2, 4, 1000):
        pre_BN = integers(33, n_latents, top)
        selected, _, _ = select(pre_BN, k, shards, exchange)
        assert torch.equal(selected, expected(pre_BN, k))
        assert (selected.sum(dim=1) == k).all()


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("hot", [0, 1, 3])
def test_a_shard_that_holds_all_of_the_largest(hot: int, exchange: str) -> None:
    pre_BN = integers(32, 64, 50)
    pre_BN[:, hot * 16 : hot * 16 + 16] += 100
    selected, shards, _ = select(pre_BN, 8, 4, exchange)
    assert torch.equal(selected, expected(pre_BN, 8))
    redone = shards[0].counts.redone
    assert redone == (32 if exchange == "candidates" else 0)


@settings(max_examples=30, deadline=None)
@given(
    shards=st.sampled_from([2, 4, 8]),
    n_local=st.integers(1, 12),
    k=st.integers(1, 96),
    top=st.sampled_from([1, 3, 30, 10**6]),
    exchange=st.sampled_from(EXCHANGES),
    seed=st.integers(0, 10**6),
)
def test_any_shape_and_distribution(
    shards: int, n_local: int, k: int, top: int, exchange: str, seed: int
) -> None:
    k = min(k, shards * n_local)
    pre_BN = integers(5, shards * n_local, top, seed)
    selected, _, _ = select(pre_BN, k, shards, exchange)
    assert torch.equal(selected, expected(pre_BN, k))


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_float64_keeps_its_digits(exchange: str) -> None:
    """Values that float32 cannot tell apart."""
    pre_BN = 1 + integers(16, 32, 1000).double() * 1e-12
    assert torch.equal(select(pre_BN, 6, 4, exchange)[0], expected(pre_BN, 6))


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_broken_latent_is_not_hidden(exchange: str) -> None:
    """A NaN counts as the largest, as on one process: the loss must show it."""
    pre_BN = integers(4, 16, 1000)
    pre_BN[1, 10] = math.nan
    selected, _, _ = select(pre_BN, 3, 4, exchange)
    assert selected[1, 10]
    assert (selected.sum(dim=1) == 3).all()


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_512_shards(exchange: str) -> None:
    """The paper's largest mesh, its k, at tiny sizes: exact, and bytes as predicted."""
    k, shards, n_tokens = 256, 512, 8
    n_local = 4 if exchange == "butterfly" else 16
    generator = torch.Generator().manual_seed(3)
    pre_BN = torch.randn(n_tokens, shards * n_local, generator=generator)
    selected, ranks, meshes = select(pre_BN, k, shards, exchange)
    assert torch.equal(selected, expected(pre_BN, k))
    calls = meshes[0].latent.sent  # type: ignore[attr-defined]
    payloads = [payload for _, purpose, payload in calls if purpose == selection.PURPOSE]
    sent = sum(payloads) * (1 if exchange == "butterfly" else shards - 1)
    redone = ranks[0].counts.redone
    again = redone * 4 * min(k, n_local) * (shards - 1)
    predicted = budget.exchange_bytes_per_token(exchange, k, n_local, shards, redone_share=0)
    assert sent == n_tokens * predicted + again


def test_redone_share_is_as_predicted() -> None:
    """Where latents fall on shards independently, under 1% of the tokens ask twice."""
    generator = torch.Generator().manual_seed(0)
    pre_BN = torch.rand(4000, 8 * 64, generator=generator)
    _, shards, _ = select(pre_BN, 32, 8, "candidates")
    assert budget.candidate_width(32, 64, 8) < 32
    assert shards[0].counts.redone / 4000 < budget.MAX_REDONE_SHARE


def test_limited_capacity_loses_latents_and_counts_them() -> None:
    pre_BN = integers(64, 64, 10**6)
    pre_BN[:, :16] += 10**7  # one hot shard: only its capacity is kept of the k largest
    selected, shards, _ = select(pre_BN, 8, 4, "gather", capacity_factor=2.0)
    wanted = expected(pre_BN, 8)
    lost = int((wanted & ~selected).sum())
    assert lost == 64 * (8 - budget.capacity_width(8, 16, 4, 2.0))
    assert shards[0].report()["select/lost_fraction"] == lost / (64 * 8)
    assert (selected.sum(dim=1) == 8).all()


def test_capacity_never_reaches_zero() -> None:
    assert budget.capacity_width(8, 100, 512, 2.0) == 1
    assert budget.capacity_width(256, 100, 512, 2.0) == 1
    assert budget.capacity_width(256, 100, 8, 2.0) == 64


@pytest.mark.parametrize("defect", ["ties_all_kept", "few_candidates", "no_candidates"])
def test_the_comparison_notices(defect: str) -> None:
    pre_BN = integers(33, 64, 4)
    pre_BN[:, :16] += 2
    with pytest.MonkeyPatch.context() as patch:
        getattr(defects, defect)(patch)
        selected, _, _ = select(pre_BN, 8, 4, "gather")
    assert not torch.equal(selected, expected(pre_BN, 8))
