"""A server on this machine that answers what wandb-workspaces asks: views, kept in memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_VIEWER = {
    **{"id": "1", "entity": "lab", "username": "me", "email": "", "flags": "{}"},
    "teams": {"edges": [{"node": {"name": "lab"}}]},
}


class ViewServer(ThreadingHTTPServer):
    """`saved`: what each mutation that saved a view sent, in order."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.saved: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" in query:
            self.saved.append(variables)
            name = variables["name"]
            return {"upsertView": {"view": {"id": f"id of {name}", "name": name}}}
        if "allViews" in query:
            [view, *_] = [v for v in self.saved if v["name"] == variables["viewName"]]
            node = {"id": "1", "displayName": view["displayName"], "spec": view["spec"]}
            return {"project": {"allViews": {"edges": [{"node": node}]}}}
        return {"viewer": _VIEWER}


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        data = self.server.answer(asked.get("query", ""), asked.get("variables", {}))
        body = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@contextmanager
def view_server() -> Iterator[ViewServer]:
    with ViewServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
