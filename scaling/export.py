"""A run's weights for other programs: `python -m scaling.export RUN_FOLDER [--format NAME]`.

    native     DIR/weights.safetensors, config.json    the default: names and shapes of training
    sae_lens   DIR/sae_weights.safetensors, cfg.json   the sae-lens library
    sparsify   DIR/sae.safetensors, cfg.json           the eai-sparsify library
    openai     DIR/autoencoder.pt, facts.json          the state dicts released with Gao et al. 2024

Of a finished run's weights, or with `--checkpoint` of the newest sound checkpoint. A native export
copies rows a few at a time, so the machine needs memory for none of the tensors, however many ranks
wrote them; the other formats are laid out otherwise, and take memory for about twice the weights.
`--push` puts the folder on the Hugging Face hub. What each format can hold: docs/interchange.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaling.errors import UserError
from scaling.interchange import hub, native, openai, ours, sae_lens, sparsify
from scaling.interchange.normalization import KINDS as NORMALIZATIONS
from scaling.plan import RunPlan
from scaling.runs.record import Status
from scaling.runs.store import RunFolder
from scaling.storage.atomic import atomic_folder, write_json
from scaling.train.checkpoint import checkpoint_steps, open_checkpoint
from scaling.train.shard_files import TensorFolder
from scaling.train.tensor_file import write_blocks

FORMATS = ("native", "sae_lens", "sparsify", "openai")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.push:
            hub.checked_target(options.push)
        out = export(
            RunFolder(options.run_folder.absolute()),
            options.out,
            averaged=options.averaged,
            from_checkpoint=options.checkpoint,
            format_name=options.format,
            normalized_inputs=options.normalized_inputs,
        )
        print(out)
        if options.push:
            print(hub.push(out, options.push, public=options.public))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run_folder", type=Path, help="RUNS_DIR/SWEEP/RUN_ID")
    add("--out", type=Path, help="a new folder (default: exports/RUN_ID[-averaged][-FORMAT])")
    add("--averaged", action="store_true", help="the averaged weights")
    add("--checkpoint", action="store_true", help="of an unfinished run: its newest checkpoint")
    add("--format", choices=FORMATS, default="native", help="whose layout (default: native)")
    add(
        "--normalized-inputs",
        action="store_true",
        help="sparsify: write it though the library will have to be given normalized activations",
    )
    add("--push", metavar="REPO", help="upload the folder to OWNER/NAME[/FOLDER] on the hub")
    add("--public", action="store_true", help="make REPO public where it is new")
    return parser


def export(
    folder: RunFolder,
    out: Path | None,
    *,
    averaged: bool = False,
    from_checkpoint: bool = False,
    format_name: str = "native",
    normalized_inputs: bool = False,
) -> Path:
    """Write the folder `out` whole, or nothing; returns it.

    Raises:
        UserError: not a run, no weights, no such average, `out` is there, the disk is full, the
            format cannot hold it.
    """
    plan = _plan(folder)
    final = out or _default_out(plan, format_name, averaged=averaged)
    if final.exists():
        raise UserError(f"--out={final} exists already: name another folder, or remove it.")
    if averaged and not plan.train.ema_decay:
        raise UserError(
            f"--averaged: run {plan.run_id} kept no average (train.ema_decay=0): leave it out."
        )
    weights = _from_checkpoint(folder, plan) if from_checkpoint else _of_done_run(folder, plan)
    config = _config(folder, plan, weights, averaged=averaged)
    try:
        with atomic_folder(final.absolute()) as temp:
            if format_name == "native":
                weights.write(temp / native.WEIGHTS, averaged=averaged)
                write_json(temp / native.CONFIG, config)
            else:
                _write_foreign(
                    format_name, weights.read(averaged=averaged), config, temp, normalized_inputs
                )
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"--out={final} was not written: {error}.") from error
    except ValueError as error:
        raise UserError(f"{error}: it changed while it was read; try again.") from error
    return final


def _default_out(plan: RunPlan, format_name: str, *, averaged: bool) -> Path:
    weights = "-averaged" if averaged else ""
    layout = "" if format_name == "native" else f"-{format_name}"
    return Path("exports") / f"{plan.run_id}{weights}{layout}"


def _write_foreign(
    format_name: str,
    weights: dict[str, Tensor],
    config: dict[str, Any],
    folder: Path,
    normalized_inputs: bool,
) -> None:
    """The same weights in another library's layout, with what is known of them beside."""
    made = ours.portable(
        config["architecture"],
        {name: tensor.to(torch.float32) for name, tensor in weights.items()},
        k=config["k"],
        normalization=config["normalization"],
        facts={name: config[name] for name in _FACTS},
    )
    match format_name:
        case "sae_lens":
            sae_lens.write(made, folder)
        case "sparsify":
            sparsify.write(made, folder, normalized_inputs=normalized_inputs)
        case "openai":
            openai.write(made, folder)
        case _:
            raise UserError(f"--format {format_name} is not one of {', '.join(FORMATS)}.")


_FACTS = ("run_id", "weights", "step", "tokens", "normalized_mse", "activations")
"""Of config.json what goes along into other formats."""


def _plan(folder: RunFolder) -> RunPlan:
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
    return Weights(there, plan.autoencoder.name, _steps_done(folder, plan), correction=1.0)


def _steps_done(folder: RunFolder, plan: RunPlan) -> int:
    """Of a run that has weights: train.stop may have ended it before the steps planned."""
    record = folder.read_record()
    return record.result["steps"] if record.status is Status.done else plan.train.steps


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
        correction = 1 - plan.train.ema_decay ** int(n_updates)
        return Weights(there, plan.autoencoder.name, step, correction)
    raise UserError(
        f"{folder.path} has no sound checkpoint (its status is {folder.status()}; checkpoints go "
        f"when a run is final).{''.join(f' {line}.' for line in passed_over)}"
    )


def _config(
    folder: RunFolder, plan: RunPlan, weights: Weights, *, averaged: bool
) -> dict[str, Any]:
    autoencoder, source = plan.autoencoder, plan.source
    record = folder.read_record()
    of_record = record.status is Status.done and record.result["steps"] == weights.step
    result = record.result if of_record else {}
    return {
        "schema_version": native.SCHEMA_VERSION,
        "architecture": autoencoder.name,
        "activation": ours.ACTIVATION[autoencoder.name],
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
