"""A run's weights in one file for other programs: `python -m scaling.export RUN_FOLDER`.

    DIR/weights.safetensors    w_enc, w_dec [n_latents, d_model], b_enc [n_latents], b_pre [d_model]
        config.json            what they are of, and how good

Of a finished run's weights, or with `--checkpoint` of the newest sound checkpoint. Rows are copied
a few at a time, so the machine needs memory for none of the tensors, however many ranks wrote them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scaling.errors import UserError
from scaling.plan import RunPlan
from scaling.runs.store import RunFolder
from scaling.storage.atomic import atomic_folder, write_json
from scaling.train.checkpoint import checkpoint_steps, open_checkpoint
from scaling.train.shard_files import TensorFolder
from scaling.train.tensor_file import write_blocks

WEIGHTS = ("w_enc", "w_dec", "b_enc", "b_pre")
FILE, CONFIG = "weights.safetensors", "config.json"
SCHEMA_VERSION = 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_folder", type=Path, help="RUNS_DIR/SWEEP/RUN_ID")
    parser.add_argument("--out", type=Path, help="a new folder (default: exports/RUN_ID)")
    parser.add_argument("--averaged", action="store_true", help="the averaged weights")
    parser.add_argument(
        "--checkpoint", action="store_true", help="of an unfinished run: its newest checkpoint"
    )
    options = parser.parse_args(arguments)
    try:
        out = export(
            RunFolder(options.run_folder.absolute()),
            options.out,
            averaged=options.averaged,
            from_checkpoint=options.checkpoint,
        )
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(out)
    return 0


def export(
    folder: RunFolder, out: Path | None, *, averaged: bool = False, from_checkpoint: bool = False
) -> Path:
    """Write the folder `out` whole, or nothing; returns it.

    Raises:
        UserError: not a run, no weights, no such average, `out` is there, the disk is full.
    """
    plan = _plan(folder)
    _check_written(plan)
    final = out or Path("exports") / f"{plan.run_id}{'-averaged' if averaged else ''}"
    if final.exists():
        raise UserError(f"--out={final} exists already: name another folder, or remove it.")
    if averaged and not plan.train.ema_decay:
        raise UserError(
            f"--averaged: run {plan.run_id} kept no average (train.ema_decay=0): leave it out."
        )
    weights = _from_checkpoint(folder, plan) if from_checkpoint else _of_done_run(folder, plan)
    try:
        with atomic_folder(final.absolute()) as temp:
            weights.write(temp / FILE, averaged=averaged)
            write_json(temp / CONFIG, _config(folder, plan, weights, averaged=averaged))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{error}: it changed while it was read; try again.") from error
    return final


def _plan(folder: RunFolder) -> RunPlan:
    if not folder.plan_path.exists():
        raise UserError(
            f"{folder.path} is not a run (it has no plan.json): give the folder of one, "
            "RUNS_DIR/SWEEP/RUN_ID."
        )
    try:
        return RunPlan.from_json(folder.read_plan())
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder.plan_path} cannot be read: {error}") from error


def _check_written(plan: RunPlan) -> None:
    """The file has these four tensors and one activation; another architecture's would be lost."""
    if (name := plan.autoencoder.name) != "topk":
        raise UserError(
            f"run {plan.run_id} is of autoencoder={name}, and only topk can be exported. Read its "
            "tensors from the run's folder weights/ instead."
        )


@dataclass(frozen=True)
class Weights:
    """Where the tensors come from."""

    there: TensorFolder
    step: int
    correction: float
    """What an average is divided by: a checkpoint has it as it accumulates from zero."""

    def write(self, path: Path, *, averaged: bool) -> None:
        layouts = self.there.layouts()
        suffix = ".ema" if averaged else ""
        layout = {name: layouts[f"{name}{suffix}"] for name in WEIGHTS}
        divisor = self.correction if averaged else 1.0
        if not divisor:
            raise UserError(
                "--averaged: no update has been averaged by then. Leave --averaged out."
            )

        def blocks(name: str) -> Iterator[Tensor]:
            for block in self.there.blocks(f"{name}{suffix}"):
                yield block if divisor == 1.0 else block / divisor

        write_blocks(path, layout, blocks)


def _of_done_run(folder: RunFolder, plan: RunPlan) -> Weights:
    path = folder.path / "weights"
    if not path.exists():
        raise UserError(
            f"{folder.path} has no weights yet (its status is {folder.status()}): they are kept "
            "when a run is done. --checkpoint takes its newest checkpoint instead."
        )
    try:
        there = TensorFolder.open(path)
        there.check()
    except ValueError as error:
        raise UserError(
            f"{error}. The weights of {plan.run_id} are damaged: restore them, or remove the "
            "folder of the run to have it done again."
        ) from error
    return Weights(there, plan.train.steps, correction=1.0)


def _from_checkpoint(folder: RunFolder, plan: RunPlan) -> Weights:
    """The newest that is sound; the others are told of on stderr."""
    passed_over = []
    for step in reversed(checkpoint_steps(folder.checkpoints_path)):
        try:
            there = open_checkpoint(folder.checkpoints_path / f"step_{step:08d}", plan.run_id)
            there.check()
            (n_updates,) = there.blocks("ema_updates")
        except ValueError as error:
            passed_over.append(f"checkpoint passed over: {error}")
            continue
        print("".join(f"{line}\n" for line in passed_over), end="", file=sys.stderr)
        return Weights(there, step, correction=1 - plan.train.ema_decay ** int(n_updates))
    raise UserError(
        f"{folder.path} has no sound checkpoint (its status is {folder.status()}; checkpoints go "
        f"when a run is final).{''.join(f' {line}.' for line in passed_over)}"
    )


def _config(
    folder: RunFolder, plan: RunPlan, weights: Weights, *, averaged: bool
) -> dict[str, Any]:
    autoencoder, source = plan.autoencoder, plan.source
    result = folder.read_record().result if weights.step == plan.train.steps else {}
    return {
        "schema_version": SCHEMA_VERSION,
        "architecture": autoencoder.name,
        "activation": "topk of the pre-activations, then relu",
        "d_model": source.d_model,
        "n_latents": autoencoder.n_latents,
        "k": autoencoder.k,
        "normalization": source.description["normalization"],
        "activations": {
            "id": source.activations_id,
            "content_hash": source.content_hash,
            "eval_hash": source.eval_hash,
            **source.description,
        },
        "run_id": plan.run_id,
        "identity": plan.identity,
        "weights": "averaged" if averaged else "raw",
        "step": weights.step,
        "tokens": weights.step * plan.train.batch_tokens,
        "normalized_mse": result.get("normalized_mse_ema" if averaged else "normalized_mse"),
    }


if __name__ == "__main__":
    sys.exit(main())
