"""Bytes between ranks, against sums written out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scaling.budget import Shape, exchange_bytes_per_token, sent_bytes, transfers
from scaling.budget.communication import ring_factor

BASE = Shape(n_latents=4096, d_model=64, k=32, batch_tokens=1024, latent=4)


def by_purpose(shape: Shape, axis: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for transfer in transfers(shape):
        if transfer.axis == axis:
            payload = transfer.times * transfer.payload_bytes
            found[transfer.purpose] = found.get(transfer.purpose, 0.0) + payload
    return found


def test_one_process_sends_nothing() -> None:
    assert transfers(replace(BASE, latent=1)) == []


def test_shards_of_the_fused_engine() -> None:
    assert by_purpose(BASE, "latent") == {
        "candidates": 1024 * 32 * 4,
        "reconstruction": 1024 * 64 * 4,
        "dead counts": 8,
        "gradient summary": 65 * 4,
    }
    clipped = by_purpose(replace(BASE, clip=True), "latent")
    assert clipped["gradient summary"] == 2 * 65 * 4


def test_shards_by_autograd_and_replicas() -> None:
    shape = replace(BASE, engine="torch", dp=2, clip=True, precision="float64")
    assert by_purpose(shape, "latent") == {
        "candidates": 512 * 32 * 8,
        "reconstruction": 512 * 64 * 8,
        "dead counts": 8,
        "b_pre gradient": 64 * 8,
        "gradient norm": 8,
    }
    assert by_purpose(shape, "dp") == {
        "fired latents": 1024,
        "w_enc gradient": 1024 * 64 * 8,
        "w_dec gradient": 1024 * 64 * 8,
        "b_enc gradient": 1024 * 8,
        "b_pre gradient": 64 * 8,
    }


def test_auxk_repeats_the_selection_and_the_reconstruction() -> None:
    shape = replace(BASE, engine="torch", dp=2, k_aux=64, dead_share=0.05)
    plain, found = by_purpose(replace(shape, k_aux=0), "latent"), by_purpose(shape, "latent")
    dead = round(0.05 * 1024)
    assert found["candidates"] - plain["candidates"] == 512 * min(64, dead) * 4
    assert found["reconstruction"] == 2 * plain["reconstruction"]
    assert by_purpose(shape, "dp")["AuxK statistics"] == (64 + 3) * 4


def test_zero_hands_out_updated_weights() -> None:
    shape = replace(BASE, engine="deepspeed", zero_stage=1, dp=4)
    params = 2 * 1024 * 64 + 1024 + 64
    found = by_purpose(shape, "dp")
    assert found["DeepSpeed gradients"] == 4 * params
    assert found["DeepSpeed weights"] == params  # a fourth of the weights, of 4 bytes
    sent = sent_bytes(shape, "dp")
    assert sent == pytest.approx(4 * params * (2 * 3 / 4 + 3 / 4), rel=0.01)


@pytest.mark.parametrize("exchange", ["gather", "candidates", "butterfly"])
@pytest.mark.parametrize("shards", [4, 64, 512])
def test_the_selection_is_what_the_choice_was_made_by(exchange: str, shards: int) -> None:
    """`choose_exchange` compares upper bounds: with 1% redone, where the exact share is less."""
    shape = Shape(
        n_latents=2**20, d_model=8, k=64, batch_tokens=1024, latent=shards, exchange=exchange
    )
    found = [t for t in transfers(shape) if t.purpose == "candidates"]
    sent = sum(t.sent_bytes(shards) for t in found) / 1024
    bound = exchange_bytes_per_token(exchange, 64, shape.n_local, shards)
    assert 0.8 * bound <= sent <= bound


def test_a_capacity_limits_what_is_offered() -> None:
    shape = replace(BASE, capacity_factor=2.0)
    assert by_purpose(shape, "latent")["candidates"] == 1024 * 16 * 4


def test_rings() -> None:
    assert ring_factor("all_reduce", 4) == 1.5
    assert ring_factor("all_gather", 4) == 3
    assert ring_factor("reduce_scatter", 4) == 0.75
    assert ring_factor("all_reduce", 1) == ring_factor("all_gather", 1) == 0
    with pytest.raises(ValueError, match="no such operation"):
        ring_factor("broadcast", 4)
