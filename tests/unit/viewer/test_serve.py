"""A site over HTTP is for this machine."""

from __future__ import annotations

import http.client
import threading
from pathlib import Path

import pytest

from scaling.errors import UserError
from scaling.viewer.serve import server_of


def test_only_by_this_machines_own_name(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("latents")
    with server_of(tmp_path, 0) as server:
        assert server.server_address[0] == "127.0.0.1"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        answers = {}
        for host in ("127.0.0.1", "localhost:1", "elsewhere.example"):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
            connection.request("GET", "/", headers={"Host": host})
            answers[host] = (
                (response := connection.getresponse()).status,
                b"latents" in response.read(),
            )
            connection.close()
        with pytest.raises(UserError, match="Take another port"):
            server_of(tmp_path, server.server_port)
        server.shutdown()
    assert answers == {
        "127.0.0.1": (200, True),
        "localhost:1": (200, True),
        "elsewhere.example": (403, False),
    }


def test_a_path_that_is_none_is_answered(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "site").mkdir()
    with server_of(tmp_path / "site", 0) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        answers = {}
        for path in ("/%00", "/../secret", "/%2e%2e/secret", "/..%2fsecret"):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
            connection.request("GET", path)
            answers[path] = connection.getresponse().status
            connection.close()
        server.shutdown()
    assert answers.pop("/%00") == 400
    assert set(answers.values()) == {404}
