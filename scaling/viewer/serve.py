"""A site over HTTP, for this machine alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from scaling.errors import UserError

LOOPBACK = "127.0.0.1"


class _Handler(SimpleHTTPRequestHandler):
    """Answers those that ask for this machine by its own name: a page from elsewhere whose host
    name was pointed here does not read the text."""

    def send_head(self) -> BytesIO | BinaryIO | None:
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in (LOOPBACK, "localhost"):
            self.send_error(403)
            return None
        try:
            return super().send_head()
        except ValueError:  # %00 in the path
            self.send_error(400)
            return None

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


def server_of(folder: Path, port: int) -> ThreadingHTTPServer:
    """What serves `folder` on the loopback address; port 0 is any that is free.

    Raises:
        UserError: somebody else has the port, or there is no such port.
    """
    try:
        return ThreadingHTTPServer((LOOPBACK, port), partial(_Handler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise UserError(f"--serve {port}: {error}. Take another port, or 0 for any.") from error


def serve(folder: Path, port: int, told: Callable[[str], None]) -> None:
    """Serve `folder` until it is interrupted; `told` gets its URL."""
    with server_of(folder, port) as server:
        told(f"http://{LOOPBACK}:{server.server_port}/")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
