"""Learning-rate calibration: `python -m analysis.calibrate SWEEP_FOLDER... [--png FILE]`.

Reads runs that differ in their rate, finds the best one of each cell (n, k, D, B) and a rule
through them, compares it with the rule in use and prints the keys that put it in its place.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from analysis.calibration.cells import SEED_SPREAD, BestRate, Cell, best_rate, read_cells
from analysis.calibration.rule import AXES, FittedRule, rule_of_cells, rule_of_runs
from analysis.command import check_paths, command_line, run
from analysis.counts import short_count
from analysis.errors import TableError
from analysis.files import replace_bytes
from analysis.records.columns import DEFAULT_LOSS, LOSSES
from scaling.schedule import BATCH_TOKENS, N_LATENTS, RULES, TOKENS, PowerRule

_WORTH_TELLING = 0.1
"""Share of dead latents from which on it is printed beside the loss."""


@command_line
def calibrate_command(argv: Sequence[str] | None = None) -> None:
    """Print the best rate of each cell, the rules through them, and the keys to put in."""
    options = _parser().parse_args(argv)
    _check_options(options)
    cells = read_cells(options.sources, options.loss)
    bests = [best_rate(cell, options.spread) for cell in cells]
    in_use = RULES[options.rule]
    print(_cells_text(bests, in_use, options))
    rules = {
        "through the cells' best rates": _attempt(lambda: rule_of_cells(bests, in_use)),
        "all runs at once, one curvature": _attempt(lambda: rule_of_runs(cells, in_use)),
    }
    for title, rule in rules.items():
        print(f"\n{title}: " + (rule if isinstance(rule, str) else _rule_text(rule)))
    fitted = [rule for rule in rules.values() if isinstance(rule, FittedRule)]
    if options.png is not None:
        _draw(options.png, bests, fitted, in_use)
    if not fitted:
        raise TableError("no rule can be fitted to these runs, for the reasons above.")
    print("\n" + _advice(fitted[-1], cells, options.rule))


def _check_options(options: argparse.Namespace) -> None:
    """TableError for what can be told before any run is read."""
    check_paths(options)
    if not 0 < options.spread <= 1:
        raise TableError(
            f"--spread {options.spread:g} is no spread; give the sd of ln loss, above 0 and at "
            f"most 1, such as {SEED_SPREAD}."
        )
    if options.loss not in LOSSES:
        raise TableError(
            f"--loss {options.loss} is no held-out loss, which a rate could be best by; choose "
            f"{' or '.join(LOSSES)}."
        )
    if options.png is not None and (options.png.suffix != ".png" or options.png.is_dir()):
        raise TableError(f"--png {options.png} is not the path of a .png file; give one.")


def _attempt(fit: Callable[[], FittedRule]) -> FittedRule | str:
    try:
        return fit()
    except TableError as error:
        return str(error)


def _cells_text(bests: Sequence[BestRate], in_use: PowerRule, options: argparse.Namespace) -> str:
    head = f"{'n':>7}{'k':>5}{'D':>9}{'B':>8}{'rates':>7}{'best lr':>11}{'+-':>6}{'/ rule':>8}"
    lines = [f"Best rates by {options.loss} (errors for a spread of {options.spread:.2%} in loss)"]
    lines += [f"{head}{'x2 costs':>10}  tried: loss"]
    return "\n".join(lines + [_cell_line(best, in_use) for best in bests])


def _cell_line(best: BestRate, in_use: PowerRule) -> str:
    cell = best.cell
    counts = "".join(
        f"{text:>{width}}"
        for text, width in (
            (str(cell.n_latents), 7),
            (str(cell.k), 5),
            (short_count(cell.tokens), 9),
            (short_count(cell.batch_tokens), 8),
            (str(len(cell.lr)), 7),
        )
    )
    ratio = best.lr / in_use.at(cell.n_latents, cell.tokens, cell.batch_tokens)
    found = f"{best.lr:>11.3g}{best.log_error:>6.0%}{ratio:>8.2f}{best.cost_of_twice:>10.1%}"
    found = found if np.isfinite(best.lr) else f"{'-':>11}{'-':>6}{'-':>8}{'-':>10}"
    return f"{counts}{found}  {_tried(cell)}" + (f"  [{best.problem}]" if best.problem else "")


def _tried(cell: Cell) -> str:
    runs = zip(cell.lr, np.exp(cell.log_loss), cell.dead, strict=True)
    return ", ".join(
        f"{lr:.3g}: {loss:.4f}" + (f" ({dead:.0%} dead)" if dead > _WORTH_TELLING else "")
        for lr, loss, dead in runs
    )


def _rule_text(fitted: FittedRule) -> str:
    rule = fitted.rule
    error = "" if fitted.log_lr_error is None else f" +- {fitted.log_lr_error:.0%}"
    lines = [
        f"lr = {rule.lr:.3g}{error} at n = {N_LATENTS}, D = {short_count(TOKENS)}, "
        f"B = {BATCH_TOKENS}; rms left over {fitted.rms:.3g}, {fitted.degrees_of_freedom} degrees "
        "of freedom"
    ]
    for axis in AXES:
        value = getattr(rule, axis)
        if axis in fitted.held:
            lines.append(f"  {axis:<7}{value:>7.3f}  held: the runs have one {axis}")
            continue
        sigma, ends = fitted.exponent_errors[axis], fitted.interval(axis)
        told = "error not known: as many cells as coefficients"
        if sigma is not None and ends is not None:
            told = f"+- {sigma:.3f}   95% [{ends[0]:.3f}, {ends[1]:.3f}]"
        lines.append(f"  {axis:<7}{value:>7.3f}  {told}")
    return "\n".join(lines)


def _advice(fitted: FittedRule, cells: Sequence[Cell], in_use: str) -> str:
    """What the rule in use costs by this fit, and the keys that put the fitted one in."""
    costs = {cell.title: fitted.cost_of(RULES[in_use], cell) for cell in cells}
    worst = max(costs, key=lambda title: costs[title])
    rule = fitted.rule
    keys = ", ".join(f"{axis}: {getattr(rule, axis):.3f}" for axis in AXES)
    return (
        f"Training by {in_use} instead costs at most {costs[worst]:.2%} of the loss in these cells "
        f"({worst}), {sum(costs.values()) / len(costs):.2%} on average.\nThe keys:\n"
        f"train:\n  lr_rule: power\n  lr_power: {{lr: {rule.lr:.4g}, {keys}}}"
    )


def _draw(
    path: Path, bests: Sequence[BestRate], fitted: Sequence[FittedRule], in_use: PowerRule
) -> None:
    from analysis.calibration.figure import valleys  # matplotlib is slow to import

    image = io.BytesIO()
    valleys(bests, fitted[-1].rule if fitted else None, in_use).savefig(
        image, dpi=150, format="png"
    )
    replace_bytes(path, image.getvalue())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.calibrate", description="Find the best learning rates of runs."
    )
    parser.add_argument(
        "sources", nargs="+", help="sweep folders, RUNS_DIR/SWEEP, or what else load_runs reads"
    )
    parser.add_argument("--loss", default=DEFAULT_LOSS, help=f"minimized: {' or '.join(LOSSES)}")
    parser.add_argument("--rule", default="step_limited", choices=sorted(RULES), help="in use")
    parser.add_argument(
        "--spread", type=float, default=SEED_SPREAD, help="sd of ln loss from run to run"
    )
    parser.add_argument("--png", type=Path, help="where to draw the valleys")
    return parser


if __name__ == "__main__":
    run(calibrate_command)
