"""Values that an evaluation's keys cannot have are refused by name, before anything is computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaling import evaluate
from scaling.errors import UserError
from scaling.evaluation import options

REFUSED = [
    "contexts=[",  # no YAML
    "metrics=[a",
    "contexts=???",
    "metrics=???",
    "contexts=${oc.env:HOME}",
    "contexts=${metrics}",
    "metrics=[[a]]",
    "probes.tasks=[[cola]]",
    "density.dense=.nan",
    "explain.ratio=.inf",
    "batch_contexts=10000000000000000000000",
    "explain.max_length=100000000000000000000",
    "ablation.seed=-1",
    "explain.seed=-1",
]


@pytest.mark.parametrize("given", REFUSED)
def test_refused_in_one_line_that_names_the_key(given: str) -> None:
    with pytest.raises(UserError) as refused:
        options.parsed([given])
    assert str(refused.value).startswith(given.partition("=")[0])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "given",
    ["omp.vectors=0", "ksvd.iterations=0", "progressive.vectors=-1", "refinement.vectors=0",
     "density.dense=2", "density.layout=nope", "ablation.tokens=0", "explain.latents=0"],
)  # fmt: skip
def test_a_metrics_own_are_refused_before_any_run(given: str) -> None:
    chosen = options.parsed([given])
    with pytest.raises(UserError, match=given.replace(".", r"\.")):
        evaluate.evaluate_runs.Evaluation(chosen, evaluate.Screen())


def test_the_command_says_so_and_tries_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(tmp_path), "metrics=[a"]) == 2
    assert capsys.readouterr().err.startswith("metrics=[a: ")
