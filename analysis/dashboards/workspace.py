"""A sweep's W&B workspace: built from its runs, written as JSON, or pushed.

wandb-workspaces (extra `dashboards`) builds it without a network; only `push` asks W&B.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import wandb_workspaces.workspaces.interface as ws
from wandb_workspaces import expr

from analysis.dashboards.cells import Sweep, filterable
from analysis.dashboards.colors import run_colors
from analysis.dashboards.panels import CONFIG_KEYS, sections
from analysis.errors import TableError
from analysis.records.columns import DEFAULT_LOSS
from analysis.records.wandb_reader import one_line

# W&B draws ten runs per panel unless told; beyond this a panel is a felt of lines, and slow.
_MOST_LINES = 200


@dataclass(frozen=True)
class Look:
    """What a user may choose about a dashboard.

    `group_by` groups the run table by some of n, k, tokens, seed: panels then show one mean line
    or point per group. `tag` shows only the runs that carry it.
    """

    loss: str = DEFAULT_LOSS
    group_by: tuple[str, ...] = ()
    tag: str | None = None


def build(sweeps: Sequence[Sweep], entity: str, project: str, look: Look) -> ws.Workspace:
    """The workspace of the runs of `sweeps`; nothing is sent."""
    cells = [cell for sweep in sweeps for cell in sweep.cells]
    settings = ws.WorkspaceSettings(
        x_axis="tokens", max_runs=min(len(cells), _MOST_LINES) or _MOST_LINES
    )
    colors = run_colors(cells)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=" and ".join(sweep.name for sweep in sweeps),
        sections=sections(look.loss),
        settings=settings,
        runset_settings=ws.RunsetSettings(
            filters=_filters([sweep.name for sweep in sweeps], look.tag),
            groupby=[expr.Config(CONFIG_KEYS[name]) for name in look.group_by],
            order=[
                expr.Ordering(expr.Config(_stored(name))) for name in ("n", "k", "tokens", "seed")
            ],
            pinned_columns=_columns(look.loss),
            run_settings={run: ws.RunSettings(color=color) for run, color in colors.items()},
        ),
    )


def _filters(groups: list[str], tag: str | None) -> expr.And:
    """The mirror makes a sweep's name the group of its runs."""
    of_group = expr.Metric("Group")
    by_group = of_group == groups[0] if len(groups) == 1 else of_group.isin(groups)
    if tag is None:
        return expr.And(by_group)
    return expr.And(by_group, expr.Tags().isin([filterable(tag, "the tag")]))


def _columns(loss: str) -> list[str]:
    final = ("status", loss, "dead_fraction", "l0", "tokens_per_s", "wall_s")
    return [
        "run:displayName",
        "run:state",
        *(f"config:{_stored(name)}" for name in CONFIG_KEYS),
        *(f"summary:{name}" for name in final),
    ]


def _stored(name: str) -> str:
    """W&B keeps each top entry of a configuration as {"value": entry}."""
    first, rest = CONFIG_KEYS[name].split(".", 1)
    return f"{first}.value.{rest}"


def as_json(workspace: ws.Workspace) -> dict[str, Any]:
    """What a push would send, with the ids of panels and of the run set numbered through.

    The library draws those at random; numbered, equal sweeps give equal files.
    """
    # The documented ways to the model all ask a server; this one is what they use themselves.
    view = workspace._to_model()
    spec = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    bank = spec["section"]["panelBankConfig"]["sections"]
    for number, panel in enumerate(panel for section in bank for panel in section["panels"]):
        panel["__id__"] = f"panel{number:02d}"
    for number, run_set in enumerate(spec["section"]["runSets"]):
        run_set["id"] = f"runset{number}"
    return {
        "entity": view.entity,
        "project": view.project,
        "displayName": view.display_name,
        "type": "project-view",
        "spec": spec,
    }


def push(workspace: ws.Workspace, replace: str | None = None) -> str:
    """Save it as a new view of its project, or in place of the one at the URL `replace`.

    Returns the view's URL.

    Raises:
        TableError: no login, no network, a refusal by W&B, or `replace` in another project.
    """
    try:
        view = workspace if replace is None else _in_place_of(replace, workspace)
        return view.save().url
    except TableError:
        raise
    except (Exception, SystemExit) as error:  # of a foreign library, or of its prompt for a key
        raise TableError(
            f"W&B did not take the workspace of {workspace.entity}/{workspace.project} "
            f"({one_line(error)}); log in by `wandb login` or WANDB_API_KEY (and WANDB_BASE_URL "
            "for a server of your own), check --entity and --project, or write it with --json and "
            "push it elsewhere."
        ) from error


def _in_place_of(url: str, workspace: ws.Workspace) -> ws.Workspace:
    there = ws.Workspace.from_url(url)
    if (there.entity, there.project) != (workspace.entity, workspace.project):
        raise TableError(
            f"--replace names a view of {there.entity}/{there.project}, but the runs are in "
            f"{workspace.entity}/{workspace.project}; give a view of that project, or other "
            "--entity and --project."
        )
    there.name, there.sections = workspace.name, workspace.sections
    there.settings, there.runset_settings = workspace.settings, workspace.runset_settings
    return there
