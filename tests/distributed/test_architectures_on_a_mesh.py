"""Every architecture that a mesh may train is trained there as on one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaling.distributed.latent import _SumForward
from scaling.runs.record import Status
from tests.distributed.test_resume_on_a_mesh import attempt_on
from tests.integration.test_resume import planned
from tests.ranks import run_threads

WIDE = ["autoencoder.bandwidth=0.1", "autoencoder.initial_threshold=0.05"]
"""So that thresholds move in a short run."""
DEAD = ["autoencoder.k=1", "autoencoder.dead_after_tokens=256"]
"""Some latents always are: silent for one batch."""
SETTINGS = {
    "relu": ["autoencoder=relu", "autoencoder.penalty=0.02"],
    "prolu": ["autoencoder=prolu", "autoencoder.penalty=0.02"],
    "gated": ["autoencoder=gated", "autoencoder.penalty=0.02"],
    "jumprelu to a target": ["autoencoder=jumprelu", *WIDE, "autoencoder.target_l0=4"],
    "topk without b_enc": ["autoencoder.b_enc=false"],
    "topk with free rows": [
        "autoencoder.decoder_norm=false",
        "autoencoder.gradient_projection=false",
    ],
    "multi_topk": ["autoencoder=multi_topk"],
    "matryoshka": ["autoencoder=matryoshka"],
    "batch_topk": ["autoencoder=batch_topk"],
    "ghosts": ["autoencoder.dead_treatment=ghost_grads", *DEAD],
    "relu with ghosts": [
        "autoencoder=relu",
        "autoencoder.penalty=0.8",
        "autoencoder.dead_treatment=ghost_grads",
        "autoencoder.dead_after_tokens=256",
    ],
    "resampled": [
        "autoencoder=batch_topk",
        "autoencoder.dead_treatment=resample",
        "autoencoder.resample_every_tokens=2_560",
        *DEAD,
    ],
    "topk unprojected": ["autoencoder.gradient_projection=false"],
}
MEASURED = ("normalized_mse", "normalized_mse_ema", "l0", "dead_fraction", "train_normalized_mse")


def results(tmp_path: Path, name: str, dp: int, latent: int) -> dict[str, float]:
    mesh = [f"mesh.dp={dp}", f"mesh.latent={latent}", "engine=torch", "train.tokens=5_120"]
    _, folder = planned(tmp_path / f"{dp}{latent}", *SETTINGS[name], *mesh)
    outcomes = run_threads(lambda mesh: attempt_on(mesh, folder.path), dp, latent)
    assert {outcome.status for outcome in outcomes} == {Status.done}
    return {key: outcomes[0].result[key] for key in MEASURED}


@pytest.mark.parametrize("name", SETTINGS)
def test_sharded_equals_single(tmp_path: Path, name: str) -> None:
    alone = results(tmp_path, name, 1, 1)
    assert results(tmp_path, name, 2, 2) == pytest.approx(alone, rel=1e-5)


def test_a_shard_that_keeps_its_part_to_itself_would_be_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_SumForward, "forward", staticmethod(lambda ctx, part, axis: part.clone()))
    with pytest.raises(RuntimeError, match="drifted apart"):
        results(tmp_path, "relu", 1, 2)
