"""`python -m scaling.budget`: predictions against published measurements, remedies, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from scaling.budget.__main__ import main
from scaling.budget.arguments import DEFAULTS, REQUIRED, parse
from scaling.budget.hardware import Hardware, hardware_names, load_hardware
from scaling.budget.memory import rank_bytes
from scaling.budget.remedies import fastest_mesh, on_mesh, parameter_sharding, smallest_remedy
from scaling.budget.report import as_json, print_report
from scaling.budget.shape import Shape
from scaling.budget.step_time import encoder_flops, predict
from scaling.command_line import known_keys
from scaling.errors import UserError
from scaling.kernels import load_kernels

ROOT = Path(__file__).parents[2]
EXAMPLE = [
    "autoencoder.n_latents=16777216",
    "activations.d_model=12288",
    "autoencoder.k=256",
    "mesh.dp=8",
    "mesh.latent=512",
    "hardware=h100",
]
SMALL = ["autoencoder.n_latents=4096", "activations.d_model=64", "autoencoder.k=8"]


def timed(hardware: str, n: int, *more: str) -> float:
    words = [f"autoencoder.n_latents={n}", "activations.d_model=768", "autoencoder.k=32"]
    asked = parse([*words, f"hardware={hardware}", "train.ema_decay=0", *more])
    return 1e3 * predict(asked.shape, asked.hardware).total_s


@pytest.mark.parametrize(
    ("n", "dead_share", "measured_ms"),
    [(32_768, 0, 21.2), (131_072, 0, 59.6), (1_048_576, 0, 414.4), (131_072, 0.05, 115.3)],
)
def test_the_measured_steps_of_an_h100(n: int, dead_share: float, measured_ms: float) -> None:
    """docs/benchmarks/step_time_h100_2026-11-22.md; two numbers of the model come from there."""
    words = ["numerics.precision=bf16", f"dead_share={dead_share}"]
    assert timed("h100", n, *words) == pytest.approx(measured_ms, rel=0.06)


@pytest.mark.parametrize(
    ("n", "dead_share", "measured_ms"),
    [
        (4096, 0, 78.5),
        (16_384, 0, 155),
        (32_768, 0, 242),
        (4096, 0.1, 136),
        (16_384, 0.1, 354),
        (32_768, 0.1, 631),
    ],
)
def test_the_measured_steps_of_two_cores(n: int, dead_share: float, measured_ms: float) -> None:
    """docs/benchmarks/step_cost_cpu_2026-11-22.md, ours_fused_certified."""
    words = ["train.batch_tokens=4096", f"dead_share={dead_share}"]
    assert timed("cpu2", n, *words) == pytest.approx(measured_ms, rel=0.1)


def test_the_encoders_flops_are_those_torch_counts() -> None:
    shape = Shape(n_latents=64, d_model=16, k=4, batch_tokens=32)
    reference = load_kernels("reference")
    x, w, b_enc, b_pre = torch.randn(32, 16), torch.randn(64, 16), torch.zeros(64), torch.zeros(16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        reference.encode_topk(x, w, b_enc, 4, b_pre_D=b_pre)
    assert counter.get_total_flops() == encoder_flops(shape)


def test_the_16_million_example_by_hand() -> None:
    found = as_json(parse([*EXAMPLE, "numerics.precision=bf16"]))
    assert found["n_params"] == 2 * 2**24 * 12_288 + 2**24 + 12_288
    assert found["fits"]
    # 2 x 16,384 tokens x 32,768 latents x 12,288 at 0.52 x 989.4e12 a second.
    assert found["compute_s"]["encoder"] == pytest.approx(25.65e-3, rel=1e-3)
    sent = {(c["axis"], c["purpose"]): c for c in found["communication"] if not c["note"]}
    recon = sent["latent", "reconstruction"]
    assert recon["sent_bytes"] == 2 * 511 / 512 * 16_384 * 12_288 * 4
    # 64 nodes, 8 shards in each: 8 adapters of 50 GB/s, of which 80% are reached, less NVLink.
    assert recon["seconds"] == pytest.approx(1.6075e9 / (8 * 0.8 * 50e9), rel=0.05)
    gradients = sent["dp", "DeepSpeed gradients"]
    assert gradients["sent_bytes"] == pytest.approx(2 * 7 / 8 * 3 * 2**30, rel=1e-3)
    assert gradients["seconds"] == pytest.approx(5.637e9 / (0.8 * 50e9), rel=0.01)
    assert found["bottleneck"] == "DeepSpeed gradients over dp"
    assert found["parameter_sharding"]["sent_bytes"] > 100 * sum(
        found["sent_bytes_per_step"].values()
    )


def test_everything_is_printed_in_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=80, highlight=False)
    print_report(parse([*EXAMPLE, "dead_share=0.1", "overlap=0.5"]), console)
    said = capsys.readouterr().out
    for words in (
        "memory per rank",
        "reconstruction (AuxK)",
        "hidden behind the backward pass",
        "Bottleneck: ",
        "It fits",
        "Why no pipeline",
        "Why no parameter sharding",
        "numerics.precision=bf16: ",
    ):
        assert words in said.replace("\n", " ")
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said


def test_json_says_the_same_and_the_process_needs_no_torch() -> None:
    command = [sys.executable, "-m", "scaling.budget", *EXAMPLE, "--json"]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    assert json.loads(done.stdout) == json.loads(json.dumps(as_json(parse(EXAMPLE))))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "autoencoder.n_latents, activations.d_model, autoencoder.k must be given"),
        ([*SMALL, "mesh.latnt=2"], "Did you mean mesh.latent"),
        ([*SMALL, "zzz=2"], "Known: "),
        ([*SMALL, "mesh.dp"], "mesh.dp has no value"),
        ([*SMALL, "mesh.dp="], "has no value"),
        ([*SMALL, "mesh.dp=two"], "mesh.dp=two is not a whole number"),
        ([*SMALL, "mesh.dp=0"], "mesh.dp=0 is not a whole number"),
        ([*SMALL, "mesh.dp=3"], "train.batch_tokens=131072 is not a multiple of mesh.dp=3"),
        ([*SMALL, "mesh.latent=3"], "is not a multiple of mesh.latent=3. Use mesh.latent=2"),
        ([*SMALL, "autoencoder.k=5000"], "autoencoder.k=5000 is more than"),
        ([*SMALL, "hardware=h10"], "Did you mean h100"),
        ([*SMALL, "numerics.precision=fp8"], "not one of float32, float64, bf16"),
        ([*SMALL, "engine=fused", "mesh.dp=2"], "it trains one replica"),
        ([*SMALL, "engine=deepspeed", "numerics.precision=float64"], "has no float64"),
        ([*SMALL, "mesh.exchange=butterfly", "mesh.latent=4096", "mesh.dp=1"], None),
        (
            ["autoencoder.n_latents=4095", *SMALL[1:], "mesh.exchange=butterfly", "mesh.latent=3"],
            "needs a power of two",
        ),
        ([*SMALL, "mesh.capacity_factor=0"], "must be above 0"),
        ([*SMALL, "dead_share=1.5"], "from 0 to 1"),
        ([*SMALL, "train.ema_decay=nan"], "not a number"),
    ],
)
def test_errors_are_one_paragraph_and_exit_2(
    words: list[str], said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == (2 if said else 0)
    error = capsys.readouterr().err
    assert (said or "") in error
    assert error.count("\n") <= 1


def test_keys_and_defaults_are_those_of_a_launch() -> None:
    own = {"hardware", "dead_share", "overlap"}
    assert {*REQUIRED, *DEFAULTS} - own <= set(known_keys())


def test_what_does_not_fit_gets_the_smallest_change_that_would() -> None:
    asked = parse([*EXAMPLE[:3], "mesh.latent=64", "numerics.precision=bf16"])
    has = asked.hardware.memory_bytes
    assert rank_bytes(asked.shape) > has
    remedy = smallest_remedy(asked.shape, has)
    assert remedy is not None
    assert rank_bytes(parse([*EXAMPLE[:3], "numerics.precision=bf16", remedy]).shape) <= has
    latent = int(remedy.removeprefix("mesh.latent="))
    assert rank_bytes(on_mesh(asked.shape, 1, latent // 2)) > has
    assert smallest_remedy(asked.shape, 1.0) is None


def test_the_fastest_mesh_is_no_slower_than_the_asked_one() -> None:
    asked = parse([*EXAMPLE, "numerics.precision=bf16"])
    best = fastest_mesh(asked.shape, asked.hardware)
    assert best is not None
    assert best.world_size == asked.shape.world_size
    best_s = predict(best, asked.hardware).total_s
    assert best_s <= predict(asked.shape, asked.hardware).total_s


def test_slower_machines_and_longer_wires_take_longer() -> None:
    asked = parse([*EXAMPLE, "numerics.precision=bf16", "dead_share=0.1"])
    base_s = predict(*asked[:2]).total_s
    for key in ("bf16_flops_per_s", "memory_bytes_per_s", "network_bytes_per_s"):
        slower = replace(asked.hardware, **{key: getattr(asked.hardware, key) / 2})
        assert predict(asked.shape, slower).total_s > base_s
    assert predict(*asked[:2], overlap=1.0).total_s < base_s


def test_parameter_sharding_pays_only_for_batches_larger_than_any() -> None:
    found = parameter_sharding(parse(EXAMPLE).shape)
    assert found.break_even_tokens > 2**22
    assert found.gathered_bytes > 80e9


@pytest.mark.parametrize("name", hardware_names())
def test_hardware_models_are_complete_and_every_number_has_a_source(name: str) -> None:
    model = load_hardware(name)
    assert model.device in ("cpu", "cuda")
    text = (ROOT / "conf" / "hardware" / f"{name}.yaml").read_text()
    bare = ("name", "device", "threads", "ranks_per_node", "node_share")
    for field in fields(Hardware):
        line = next(line for line in text.splitlines() if line.startswith(f"{field.name}: "))
        assert field.name in bare or "# " in line


def test_a_model_without_a_number_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "conf" / "hardware" / "h100.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("node_share", "nod_share"))
    (tmp_path / "other.yaml").write_text(text.replace("80.0e9", "much"))
    monkeypatch.setattr("scaling.budget.hardware.FOLDER", tmp_path)
    with pytest.raises(UserError, match="nod_share, node_share missing or unknown"):
        load_hardware("mine")
    with pytest.raises(UserError, match="much"):
        load_hardware("other")
