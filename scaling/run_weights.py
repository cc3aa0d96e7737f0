"""The weights of a run as a program outside training wants them: raw or averaged, any architecture.

Reads what ranks wrote, a few rows at a time; of a finished run, or of its newest sound checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scaling.errors import UserError
from scaling.interchange import ours
from scaling.interchange.model import Facts, LoadedAutoencoder
from scaling.interchange.normalization import KINDS as NORMALIZATIONS
from scaling.plan import RunPlan
from scaling.runs.record import Status
from scaling.runs.store import RunFolder
from scaling.train.checkpoint import checkpoint_steps, open_checkpoint
from scaling.train.shard_files import TensorFolder, is_per_latent
from scaling.train.tensor_file import write_blocks


def plan_of(folder: RunFolder) -> RunPlan:
    """The plan of a run whose weights are wanted.

    Raises:
        UserError: not a run, or its plan cannot be read.
    """
    if not folder.plan_path.exists():
        raise UserError(
            f"{folder.path} is not a run (it has no plan.json): give the folder of one, "
            "RUNS_DIR/SWEEP/RUN_ID."
        )
    try:
        plan = RunPlan.from_json(folder.read_plan())
        if plan.source.description["normalization"] in NORMALIZATIONS:
            return plan
        raise ValueError(f"source.description is {plan.source.description}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder.plan_path} cannot be read: {error}") from error


@dataclass(frozen=True)
class Weights:
    """Where the tensors come from."""

    there: TensorFolder
    architecture: str
    step: int
    correction: float
    """What an average is divided by: a checkpoint has it as it accumulates from zero."""

    def write(self, path: Path, *, averaged: bool) -> None:
        """One safetensors file of them, a few rows at a time."""
        there = self.there.layouts()
        layout = {
            name: there[self._stored_as(name, averaged)]
            for name in ours.tensor_names(self.architecture)
        }
        write_blocks(path, layout, lambda name: self._blocks(name, averaged))

    def read(self, *, averaged: bool) -> dict[str, Tensor]:
        """All of them, in memory."""
        return {
            name: _joined(self._blocks(name, averaged))
            for name in ours.tensor_names(self.architecture)
        }

    def _stored_as(self, name: str, averaged: bool) -> str:
        return f"{name}.ema" if self._is_averaged(name, averaged) else name

    def _is_averaged(self, name: str, averaged: bool) -> bool:
        return averaged and not ours.is_statistic(self.architecture, name)

    def _blocks(self, name: str, averaged: bool) -> Iterator[Tensor]:
        divisor = self.correction if self._is_averaged(name, averaged) else 1.0
        if not divisor:
            raise UserError(
                "--averaged: no update has been averaged by then. Leave --averaged out."
            )
        for block in self.there.blocks(self._stored_as(name, averaged)):
            yield block if divisor == 1.0 else block / divisor


def _joined(blocks: Iterator[Tensor]) -> Tensor:
    first, *rest = blocks
    return torch.cat([first, *rest]) if rest else first


def of_done_run(folder: RunFolder, plan: RunPlan) -> Weights:
    path = folder.path / "weights"
    if not path.exists():
        raise UserError(
            f"{folder.path} has no weights yet (its status is {folder.status()}): they are kept "
            "when a run is done. --checkpoint takes its newest checkpoint instead."
        )
    try:
        there = TensorFolder.open(path)
        there.check()
        _check_shapes(there, plan)
    except ValueError as error:
        raise UserError(
            f"{error}. The weights of {plan.run_id} are damaged: restore them, or remove the "
            "folder of the run to have it done again."
        ) from error
    return Weights(there, plan.autoencoder.name, _steps_done(folder, plan), correction=1.0)


def _check_shapes(there: TensorFolder, plan: RunPlan) -> None:
    """A checksum says that a file is as it was written, not that it is of this plan.

    Raises:
        ValueError: a tensor is not there, or has another shape than the plan gives it.
    """
    n_latents, d_model = plan.autoencoder.n_latents, plan.source.d_model
    if there.n_latents != n_latents:
        raise ValueError(
            f"{there.path} has rows of {there.n_latents} latents, and the plan is of {n_latents}"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ours.tensor_names(plan.autoencoder.name):
        if ours.is_statistic(plan.autoencoder.name, name):
            shapes[name] = ()
            continue
        rows = (n_latents,) if is_per_latent(name) else ()
        shapes[name] = (*rows, d_model) if name in ("w_enc", "w_dec", "b_pre") else rows
        if plan.train.ema_decay:
            shapes[f"{name}.ema"] = shapes[name]
    there.check_shapes(shapes)


def _steps_done(folder: RunFolder, plan: RunPlan) -> int:
    """Of a run that has weights: train.stop may have ended it before the steps planned."""
    record = folder.read_record()
    if record.status is not Status.done:
        return plan.train.steps
    steps = (record.result or {}).get("steps")
    if not isinstance(steps, int):
        raise UserError(
            f"{folder.record_path} is of a run that is done and does not say after how many steps: "
            f"restore it, or remove {folder.path} to have the run done again."
        )
    return steps


def from_checkpoint(folder: RunFolder, plan: RunPlan) -> Weights:
    """The newest that is sound; the others are told of on stderr."""
    passed_over = []
    for step in reversed(checkpoint_steps(folder.checkpoints_path)):
        try:
            there = open_checkpoint(folder.checkpoints_path / f"step_{step:08d}", plan.run_id)
            there.check()
            _check_shapes(there, plan)
            (n_updates,) = there.blocks("ema_updates")
        except ValueError as error:
            passed_over.append(f"checkpoint passed over: {error}")
            continue
        print("".join(f"{line}\n" for line in passed_over), end="", file=sys.stderr)
        correction = 1 - plan.train.ema_decay ** int(n_updates)
        return Weights(there, plan.autoencoder.name, step, correction)
    raise UserError(
        f"{folder.path} has no sound checkpoint (its status is {folder.status()}; checkpoints go "
        f"when a run is final).{''.join(f' {line}.' for line in passed_over)}"
    )


def load_run(folder: RunFolder, *, averaged: bool = False) -> LoadedAutoencoder:
    """The autoencoder of a finished run, for raw activations, on the CPU in float32.

    Raises:
        UserError: not a run, no weights yet, damaged, not finite, or no such average.
    """
    plan = plan_of(folder)
    if averaged and not plan.train.ema_decay:
        raise UserError(
            f"averaged=true: run {plan.run_id} kept no average (train.ema_decay=0): leave it out."
        )
    weights = of_done_run(folder, plan).read(averaged=averaged)
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise UserError(
            f"the weights of {plan.run_id} are not finite ({', '.join(broken)}): it diverged. "
            "Train it again with a lower train.lr."
        )
    portable = ours.portable(
        plan.autoencoder.name,
        {name: tensor.to(torch.float32) for name, tensor in weights.items()},
        k=plan.autoencoder.k,
        normalization=plan.source.description["normalization"],
        facts={"run_id": plan.run_id, "weights": "averaged" if averaged else "raw"},
    )
    source = str(folder.path)
    return LoadedAutoencoder(portable, Facts.of(portable, source=source, format_name="run"))
