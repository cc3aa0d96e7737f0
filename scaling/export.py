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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scaling import run_weights
from scaling.errors import UserError
from scaling.interchange import hub, native, openai, ours, sae_lens, sparsify
from scaling.plan import RunPlan
from scaling.runs.record import Status
from scaling.runs.store import RunFolder
from scaling.storage.atomic import atomic_folder, write_json

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
    plan = run_weights.plan_of(folder)
    final = out or _default_out(plan, format_name, averaged=averaged)
    if final.exists():
        raise UserError(f"--out={final} exists already: name another folder, or remove it.")
    if averaged and not plan.train.ema_decay:
        raise UserError(
            f"--averaged: run {plan.run_id} kept no average (train.ema_decay=0): leave it out."
        )
    weights = (run_weights.from_checkpoint if from_checkpoint else run_weights.of_done_run)(
        folder, plan
    )
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


def _config(
    folder: RunFolder, plan: RunPlan, weights: run_weights.Weights, *, averaged: bool
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
