"""A W&B server for a test: OpenWandb, and a gateway that answers what it lacks.

OpenWandb (a program apart, never a dependency: its license forbids commercial use) takes runs as
W&B does and keeps every row. `wandb.Api` cannot read them back from it: the queries name fields
that its schema lacks, and come with an empty operation name, which it refuses. The gateway stands
before it, passes everything on, and answers the reading queries itself from what is stored.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

KEY = "local" + 40 * "0"  # the one that OpenWandb's documentation gives for SDKs
ENTITY = "default"
_STARTS_WITHIN_S = 30


@dataclass(frozen=True)
class OpenWandb:
    url: str

    def get(self, path: str) -> Any:
        request = urllib.request.Request(self.url + path, headers={"X-WANDB-API-KEY": KEY})
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.read()

    def runs(self, project: str) -> list[dict[str, Any]]:
        """As stored: run_id, state, display_name, tags, config ({key: {"value": ...}}), summary."""
        found = json.loads(self.get(f"/api/v2/projects/{ENTITY}/{quote(project)}/runs"))["runs"]
        return sorted(found, key=lambda run: run["run_id"])

    def run(self, project: str, run_id: str) -> dict[str, Any]:
        [found] = [run for run in self.runs(project) if run["run_id"] == run_id]
        return found

    def rows(self, project: str, run_id: str) -> list[dict[str, Any]]:
        """Every row received, in order, W&B's own keys (_step, _timestamp, ...) included."""
        path = f"/files/{ENTITY}/{project}/{run_id}/wandb-history.jsonl"
        return [json.loads(line) for line in self.get(path).splitlines() if line.strip()]


@contextmanager
def open_wandb(executable: str, folder: Path) -> Iterator[OpenWandb]:
    """A server of its own, on a free port of this machine, with nothing in it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [executable, "serve", "--host", "127.0.0.1", "--port", str(port)]
    # Its own environment knows nothing of this project's.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--data-dir", str(folder / "data")],
            env=environment | {"HOME": str(folder), "OPENWANDB_DATA_DIR": str(folder / "data")},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/login", process, folder / "server.log")
            yield OpenWandb(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait(timeout=20)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _STARTS_WITHIN_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"the server did not start: {log.read_text()}") from None
            time.sleep(0.2)


class Gateway(ThreadingHTTPServer):
    """`busy_next`: so many of the coming reading queries are refused, too many requests."""

    daemon_threads = True

    def __init__(self, behind: OpenWandb) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind = behind
        self.groups: dict[str, str] = {}
        self.asked: list[str] = []
        self.busy_next = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def gateway(behind: OpenWandb) -> Iterator[Gateway]:
    with Gateway(behind) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Gateway
    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/graphql":
            asked = json.loads(body)
            if asked.get("operationName") == "":
                del asked["operationName"]
            body = json.dumps(asked).encode()
            found = Reading(self.server, asked.get("variables") or {}).answer(asked["query"])
            if found is not None:
                self._answer(found)
                return
            self._note_group(asked.get("variables") or {})
        self._pass_on(body)

    do_GET = do_POST = do_PUT = _any

    def _note_group(self, variables: dict[str, Any]) -> None:
        """OpenWandb does not store the group of a run."""
        if variables.get("groupName"):
            self.server.groups[variables["name"]] = variables["groupName"]

    def _answer(self, found: dict[str, Any]) -> None:
        status = 200
        if self.server.busy_next:
            self.server.busy_next -= 1
            status, found = 429, {"errors": [{"message": "rate limit exceeded"}]}
        self._send(status, "application/json", json.dumps(found).encode())

    def _pass_on(self, body: bytes) -> None:
        ours = ("content-length", "host", "accept-encoding", "connection")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ours}
        request = urllib.request.Request(
            self.server.behind.url + self.path, body or None, headers, method=self.command
        )
        try:
            response: Any = urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            kind = response.headers.get("Content-Type", "application/json")
            self._send(response.status, kind, response.read())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@dataclass(frozen=True)
class Reading:
    """Answers to the queries of `wandb.Api` of wandb 0.31."""

    server: Gateway
    variables: dict[str, Any] = field(default_factory=dict)

    def answer(self, query: str) -> dict[str, Any] | None:
        """None: not one of them."""
        answers = {
            "query Runs(": self._runs,
            "query Run(": self._run,
            "query RunHistoryKeys(": self._keys,
            "query RunParquetHistory ": self._parquet,
            "query HistoryPage ": self._page,
        }
        for start, make in answers.items():
            if start in query:
                self.server.asked.append(start.split()[1].strip("("))
                return {"data": {"project": make()}}
        return None

    def _runs(self) -> dict[str, Any]:
        """Pages by position; the filter {"group": name} alone is understood."""
        group = json.loads(self.variables.get("filters") or "{}").get("group")
        runs = self.server.behind.runs(self.variables["project"])
        nodes = [self._node(run) for run in runs]
        nodes = [node for node in nodes if group in (None, node["group"])]
        first = int(self.variables.get("cursor") or 0)
        last = first + self.variables["perPage"]
        edges = [{"node": node, "cursor": str(last)} for node in nodes[first:last]]
        more = {"endCursor": str(last), "hasNextPage": last < len(nodes)}
        counts = {"internalId": "1", "readOnly": False, "runCount": len(nodes)}
        return counts | {"runs": {"edges": edges, "pageInfo": more}}

    def _run(self) -> dict[str, Any]:
        return {"run": self._node(self._stored_run())}

    def _keys(self) -> dict[str, Any]:
        return {"run": {"historyKeys": self._node(self._stored_run())["historyKeys"]}}

    def _parquet(self) -> dict[str, Any]:
        """A run that was not exported yet: all of its rows are live."""
        live = self._rows(self.variables["runName"])
        return {"run": {"parquetHistory": {"parquetUrls": [], "liveData": live}}}

    def _page(self) -> dict[str, Any]:
        low, high = int(self.variables["minStep"]), int(self.variables["maxStep"])
        rows = [r for r in self._rows(self.variables["run"]) if low <= r["_step"] < high]
        return {"run": {"history": [json.dumps(row) for row in rows]}}

    def _stored_run(self) -> dict[str, Any]:
        return self.server.behind.run(self.variables["project"], self.variables["name"])

    def _rows(self, run_id: str) -> list[dict[str, Any]]:
        return self.server.behind.rows(self.variables["project"], run_id)

    def _node(self, run: dict[str, Any]) -> dict[str, Any]:
        rows = self._rows(run["run_id"])
        keys = {"lastStep": max(row["_step"] for row in rows), "keys": {}}
        return {
            **{"id": str(run["id"]), "name": run["run_id"], "displayName": run["display_name"]},
            **{"projectId": "1", "state": run["state"], "tags": run["tags"], "readOnly": False},
            **{"group": self.server.groups.get(run["run_id"]), "jobType": None, "commit": None},
            **{"createdAt": run["created_at"], "heartbeatAt": run["heartbeat_at"], "notes": ""},
            **{"sweepName": None, "description": "", "user": {"name": "me", "username": "me"}},
            **{"config": json.dumps(run["config"]), "summaryMetrics": json.dumps(run["summary"])},
            **{"systemMetrics": "{}", "historyLineCount": len(rows), "historyKeys": keys},
        }
