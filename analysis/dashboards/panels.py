"""The panels: the law's points, loss against tokens, health, speed.

Names are those of the runs' files (docs/records.md), as the mirror sends them: curves from
metrics.jsonl, `summary` from record.json, `config` the user's configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces.interface as ws

from analysis.palette import ORDERED

CONFIG_KEYS: Mapping[str, str] = {
    "n": "autoencoder.n_latents",
    "k": "autoencoder.k",
    "tokens": "train.tokens",
    "seed": "train.seed",
}
"""What tells cells of a sweep apart, and where the configuration has it: from a run's start on."""


def sections(loss: str) -> list[ws.Section]:
    """All sections, the law's first. `loss` is normalized_mse or normalized_mse_ema."""
    return [_law(loss), _training(), _held_out(loss), _health(), _speed()]


def _law(loss: str) -> ws.Section:
    """One point per finished run; the color is the third axis."""
    return _section(
        "Law",
        [
            _scatter("L(n, k): held-out loss against latents", "n_latents", loss, "k"),
            _scatter("L(n, D): held-out loss against tokens", "tokens", loss, "n_latents"),
            _scatter("L(C): held-out loss against dense FLOPs", "flops_dense", loss, "k"),
            _scatter("Frontier: held-out loss against measured L0", "l0", loss, "n_latents"),
        ],
    )


def _training() -> ws.Section:
    metric, name = "train/normalized_mse", "training loss"
    return _section(
        "Loss against tokens",
        [
            _lines(f"{name} by n", metric, by="n", log_y=True),
            _lines(f"{name} by k", metric, by="k", log_y=True),
            _lines(f"{name} of each run", metric, log_y=True),
        ],
    )


def _held_out(loss: str) -> ws.Section:
    """Closed: without evaluation.every_tokens a run is evaluated once, and its curve is a point."""
    metric, name = f"eval/{loss}", "held-out loss"
    panels = [
        _lines(f"{name} by n", metric, by="n", log_y=True),
        _lines(f"{name} by k", metric, by="k", log_y=True),
        _lines(f"{name} of each run", metric, log_y=True),
    ]
    return _section("Held-out loss along the run", panels, is_open=False)


def _health() -> ws.Section:
    return _section(
        "Health",
        [
            _lines("dead fraction by n", "train/dead_fraction", by="n"),
            _lines("dead fraction of each run", "train/dead_fraction"),
            _scatter("dead fraction at the end", "n_latents", "dead_fraction", "k", log_y=False),
            _lines("AuxK loss of each run", "train/aux_loss"),
            _lines("gradient norm of each run", "train/grad_norm", log_y=True),
            _scatter("L0 against k", "k", "l0", "n_latents"),
        ],
    )


def _speed() -> ws.Section:
    return _section(
        "Speed",
        [
            _lines("tokens/s by n", "perf/tokens_per_s", by="n", log_y=True),
            _lines("tokens/s of each run", "perf/tokens_per_s", log_y=True),
            _scatter("tokens/s of the run", "n_latents", "tokens_per_s", "k"),
            _scatter("peak memory in bytes", "n_latents", "peak_memory_bytes", "k"),
            _scatter("wall time in s", "flops_sparse", "wall_s", "k"),
        ],
    )


def _section(
    name: str, panels: Sequence[wr.LinePlot | wr.ScatterPlot], is_open: bool = True
) -> ws.Section:
    return ws.Section(name=name, panels=[*panels], is_open=is_open)


def _lines(title: str, metric: str, *, by: str | None = None, log_y: bool = False) -> wr.LinePlot:
    """Curves against tokens: one per run, or the mean and range of the runs that share `by`."""
    return wr.LinePlot(
        title=title,
        x="tokens",
        y=[metric],
        log_x=True,
        log_y=log_y or None,
        groupby=None if by is None else wr.Config(CONFIG_KEYS[by]),
        groupby_aggfunc=None if by is None else "mean",
        groupby_rangefunc=None if by is None else "minmax",
    )


def _scatter(title: str, x: str, y: str, color: str, *, log_y: bool = True) -> wr.ScatterPlot:
    """A point per run at its final numbers; `color` is ordered, blue the least."""
    return wr.ScatterPlot(
        title=title,
        x=wr.SummaryMetric(x),
        y=wr.SummaryMetric(y),
        z=wr.SummaryMetric(color),
        log_x=True,
        log_y=log_y or None,
        log_z=True,
        gradient=[
            wr.GradientPoint(color=stop, offset=100.0 * i / (len(ORDERED) - 1))
            for i, stop in enumerate(ORDERED)
        ],
    )
