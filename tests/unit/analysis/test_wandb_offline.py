"""Offline W&B files, as this program's own mirror writes them, against the run folders."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fabricate import Cell, record, write_record
from mirrored import mirror

from analysis.errors import TableError
from analysis.records import load_curves, load_runs
from analysis.records.wandb_file import entries
from analysis.records.wandb_offline import wandb_files
from scaling.runs.fields import COST_FIELDS, RESULT_FIELDS

CONFIG = {
    "autoencoder": {"n_latents": 512, "k": 8},
    "train": {"seed": 3, "tokens": 9, "lr": None},
    "activations": {"seed": 5, "layer": 8, "normalization": "unit_norm"},
}
EVALUATION = {
    "kl": 0.125,
    "loss_recovered": 0.97,
    "k": 9,
    "note": "not a number",
    "metrics": {"kl": {"measured_as": "123456789012"}},
}
EVALUATED = ["kl", "loss_recovered", "kl_measured_as", "evaluation_error"]
COPIED = [*RESULT_FIELDS, *COST_FIELDS, *EVALUATED]
FAILURE = {"type": "RuntimeError", "message": "x", "traceback": None, "rank": 0}


def make_run(sweep: Path, row: dict[str, Any], steps: range, state: str = "first") -> Path:
    run = write_record(sweep, row)
    (run / "plan.json").write_text(json.dumps({"title": "a title", "config": CONFIG}))
    lines = [{"tokens": 256 * s, "step": s, "train/loss": 1 / s, "perf/mfu": None} for s in steps]
    if steps:
        # W&B's summary takes `tokens` from the last row: a run's last row is of its last step.
        lines[-1] |= {"eval/l0": 8.0, "tokens": row["result"].get("tokens", 512)}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / f"metrics.jsonl.{state}").write_text(text)
    (run / "record.json").replace(run / f"record.json.{state}")
    return run


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Done, done with nulls and many rows (a file of several blocks), resumed, and running."""
    sweep = tmp_path_factory.mktemp("runs") / "grid"
    make_run(sweep, record(Cell(256, 4, 125_000), 0.4, run_id="a" * 12), range(1, 6))
    (sweep / ("a" * 12) / "evaluation.json").write_text(json.dumps(EVALUATION))
    nulls = {"dead_fraction": None, "commit": None}
    make_run(sweep, record(Cell(512, 4, 125_000), 0.3, run_id="b" * 12, **nulls), range(1, 500))
    resumed = record(Cell(512, 8, 125_000), 0.25, run_id="c" * 12)
    failed = resumed | {"status": "failed", "error": FAILURE, "result": {}}
    make_run(sweep, failed, range(1, 5))
    running = record(Cell(512, 8, 250_000), 0.25, run_id="d" * 12)
    make_run(sweep, running | {"status": "running", "result": {}, "cost": {}}, range(1, 3))
    make_run(sweep, resumed, range(3, 8), "later")  # again from step 3
    mirror(sweep, "first", "later")
    return sweep


def test_rows_equal_those_of_the_folders(sweep: Path) -> None:
    folders, copies = (load_runs(s).set_index("run_id") for s in (sweep, sweep / "wandb"))
    assert copies["status"].to_dict() == folders["status"].to_dict()
    done = folders.index[folders["status"] == "done"]
    assert len(done) == 3
    assert set(copies["sweep"]) == {"grid"}
    names = [name for name in (*COPIED, "loss", "excluded", "error") if name in folders]
    assert {*EVALUATED, "k", "versions", "mesh"} <= {*names}
    assert (
        copies.loc["a" * 12, "evaluation_error"] == "evaluation.json: k left out: a record has it"
    )
    pd.testing.assert_frame_equal(
        copies.loc[done, names], folders.loc[done, names], check_dtype=False
    )
    row = copies.loc["b" * 12]
    assert Path(row["folder"]).parent == sweep / "wandb"
    assert row["source"] == str(sweep / "wandb")


def test_a_run_without_a_result_is_known_by_its_config(sweep: Path) -> None:
    row = load_runs(sweep / "wandb").set_index("run_id").loc["d" * 12]
    assert (row["n_latents"], row["k"], row["seed"], row["layer"]) == (512, 8, 3, 8)
    assert row["excluded"] == "status is running"


def test_curves_equal_those_of_the_folders(sweep: Path) -> None:
    others = ["a" * 12, "b" * 12, "d" * 12]
    from_folders, from_copies = (load_curves(s, runs=others) for s in (sweep, f"wandb:{sweep}"))
    pd.testing.assert_frame_equal(from_copies, from_folders, check_exact=True)
    assert len(from_copies) == 5 + 499 + 2
    resumed = load_curves(sweep / "wandb", runs=["c" * 12])
    assert resumed["step"].tolist() == list(range(1, 8))


def test_one_run_folder_of_wandb_is_a_source(sweep: Path) -> None:
    (file,) = sweep.glob(f"wandb/*{'a' * 12}/*.wandb")
    for source in (file.parent, f"wandb:{file.parent}"):
        assert load_runs(source)["run_id"].tolist() == ["a" * 12]
    assert len(wandb_files(sweep / "wandb")) == 5  # of the resumed run, two


def copy_of(sweep: Path, run_id: str, to: Path) -> Path:
    """The .wandb file of a run alone in a folder."""
    (file,) = sweep.glob(f"wandb/*{run_id}/*.wandb")
    shutil.copytree(file.parent, to / file.parent.name, ignore=shutil.ignore_patterns("logs"))
    return to / file.parent.name / file.name


def test_a_file_cut_short_gives_what_came_before(sweep: Path, tmp_path: Path) -> None:
    file = copy_of(sweep, "b" * 12, tmp_path)
    data = file.read_bytes()
    assert len(data) > 3 * 32_768
    for n_bytes in (len(data) // 2, 32_768 + 3, 32_768 * 2 - 5):
        file.write_bytes(data[:n_bytes])
        assert load_runs(tmp_path)["status"].tolist() == ["running"]
        curve = load_curves(tmp_path)
        assert 0 < len(curve) < 499
        assert curve["step"].tolist() == list(range(1, len(curve) + 1))


def test_a_damaged_file_is_one_unreadable_run(sweep: Path, tmp_path: Path) -> None:
    file = copy_of(sweep, "b" * 12, tmp_path)
    copy_of(sweep, "a" * 12, tmp_path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    frame = load_runs(tmp_path, allow="rejected").set_index("run_id")
    assert frame["status"].to_dict() == {"a" * 12: "done", "b" * 12: "unreadable"}
    assert "damaged at byte" in frame.loc["b" * 12, "error"]
    assert 0 < len(load_curves(tmp_path, runs=["b" * 12])) < 499
    file.write_text("no such file")
    frame = load_runs(tmp_path, allow="rejected").set_index("run_id")
    assert "not a .wandb file" in frame.loc["b" * 12, "error"]


def test_a_foreign_project_is_refused_with_the_columns(tmp_path: Path) -> None:
    script = f"""
import wandb
settings = wandb.Settings(silent=True, console="off", disable_git=True)
run = wandb.init(project="other", mode="offline", dir={str(tmp_path)!r}, settings=settings)
run.log({{"accuracy": 0.5}})
run.finish()
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    with pytest.raises(TableError, match="none of its 1 runs has n_latents, k, tokens, seed") as e:
        load_runs(tmp_path / "wandb")
    assert "there is: accuracy." in str(e.value)
    assert "logger=wandb has autoencoder, n_latents" in str(e.value)


def framed(*parts: tuple[int, bytes]) -> bytes:
    """A file of these records: type (1 whole, 2 first, 3 middle, 4 last) and data."""
    crcs = [zlib.crc32(bytes([kind]) + data) for kind, data in parts]
    heads = [struct.pack("<IHB", crc, len(p[1]), p[0]) for crc, p in zip(crcs, parts, strict=True)]
    pairs = zip(heads, parts, strict=True)
    return b":W&B\xe1\xbe\x00" + b"".join(head + part[1] for head, part in pairs)


def test_entries_of_several_parts() -> None:
    data = framed((1, b"one"), (2, b"tw"), (3, b"o and "), (4, b"more"), (1, b""))
    assert list(entries(data)) == [b"one", b"two and more", b""]
    assert list(entries(data[:-8])) == [b"one"]
    assert list(entries(data[:7])) == list(entries(b"")) == []
    for parts in ([(4, b"x")], [(2, b"x"), (1, b"y")], [(2, b"x"), (2, b"y")], [(3, b"x")]):
        with pytest.raises(ValueError, match="out of order"):
            list(entries(framed(*parts)))
    with pytest.raises(ValueError, match="damaged at byte 7"):
        list(entries(framed((7, b"x"))))


@pytest.mark.parametrize(
    ("n_bytes", "what"), [(0, "is empty"), (7, "is cut short"), (30, "is cut short")]
)
def test_a_file_with_nothing_in_it_is_no_other_programs(
    tmp_path: Path, n_bytes: int, what: str
) -> None:
    file = tmp_path / "offline-run-1-abc" / "run-abc.wandb"
    file.parent.mkdir()
    file.write_bytes(framed((1, b"x" * 64))[:n_bytes])
    frame = load_runs(tmp_path, allow="rejected")
    assert frame["status"].tolist() == ["unreadable"]
    assert what in frame["error"][0]
    with pytest.raises(TableError, match=what):
        load_runs(tmp_path)
