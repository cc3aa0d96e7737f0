"""Views saved by the real client, over HTTP, to a server that this test runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from test_dashboards import write_sweep
from wandb_stub import view_server

if find_spec("wandb_workspaces") is None:
    pytest.skip("the extra `dashboards` is not installed", allow_module_level=True)

# All calls in one process: the client's service takes seconds to start. "{url}" in an argument is
# the URL that the first call printed.
_SCRIPT = """
import contextlib, io, json, sys
from analysis.dashboards.main import main
url, answers = None, []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([url if argument == "{url}" else argument for argument in arguments])
    url = url or (out.getvalue().split() or [None])[-1]
    answers.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
print(json.dumps(answers))
"""


def push(home: Path, server: str, calls: Sequence[Sequence[str]], **environment: str) -> list[Any]:
    """Answers of the command. `home` is empty, so that no login of this machine's user is used."""
    without = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    there = {"WANDB_BASE_URL": server, "HOME": str(home), "WANDB_CONFIG_DIR": str(home / "wandb")}
    answer = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(calls)],
        cwd=Path(__file__).parents[3],
        env=without | there | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


def test_a_push_saves_the_view_and_prints_its_url(tmp_path):
    written = tmp_path / "out.json"
    demo = [str(write_sweep(tmp_path / "demo")), "--entity", "lab", "--push"]
    calls = [
        [*demo, "--json", str(written)],
        [*demo, "--tag", "t", "--replace", "{url}"],
        [*demo, "--project", "other", "--replace", "{url}"],
        demo,
    ]
    with view_server() as server:
        first, again, foreign, another = push(
            tmp_path, server.url, calls, WANDB_API_KEY="local" + 35 * "0"
        )
    address = first["out"].split()[-1]
    assert address.startswith(f"{server.url}/lab/laws?nw=")
    sent, replacing, anew = server.saved
    assert (sent["entityName"], sent["projectName"], sent["displayName"]) == ("lab", "laws", "demo")
    assert without_ids(json.loads(sent["spec"])) == without_ids(
        json.loads(written.read_text())["spec"]
    )

    assert (again["out"].split()[-1], replacing["name"]) == (address, sent["name"])
    [run_set] = json.loads(replacing["spec"])["section"]["runSets"]
    assert [f["value"] for f in run_set["filters"]["filters"]] == ["demo", ["t"]]
    assert foreign["code"] == 2
    assert "--replace names a view of lab/laws, but the runs are in lab/other" in foreign["err"]
    assert another["out"].split()[-1] != address
    assert anew["name"] != sent["name"]


def without_ids(value: object) -> object:
    """Panels and run sets get new ids each time."""
    if isinstance(value, dict):
        return {
            key: without_ids(item) for key, item in value.items() if key not in ("__id__", "id")
        }
    return [without_ids(item) for item in value] if isinstance(value, list) else value


def test_without_a_login_the_remedy_is_named(tmp_path):
    with view_server() as server:
        [answer] = push(tmp_path, server.url, [["demo", "--entity", "lab", "--push"]])
    assert answer["code"] == 2
    assert answer["err"].splitlines()[-1].startswith("error: W&B did not take the workspace of lab")
    assert "log in by `wandb login` or WANDB_API_KEY" in answer["err"]
    assert server.saved == []
