"""Ids of the hub, downloads by its real client from a server of this test's own, and pushes."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

import scaling
from scaling.errors import UserError
from scaling.interchange import hub, sparsify
from scaling.interchange.hub import HubId
from tests.portables import activations, model_of, random_portable

COMMIT = "a" * 40
REPO = "someone/autoencoders"


class Hub(BaseHTTPRequestHandler):
    """One repository at one commit, as far as a download needs it."""

    root: Path
    fetched: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPO}/revision/"):
            siblings = [{"rfilename": name} for name in self._files()]
            info = {"_id": "1", "id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings}
            return self._send(json.dumps(info).encode(), "application/json", with_body)
        if path.startswith(f"/api/models/{REPO}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": size, "oid": name}
                for name, size in self._files().items()
            ]
            return self._send(json.dumps(tree).encode(), "application/json", with_body)
        name = path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")
        if name == path or not (self.root / name).is_file():
            return self.send_error(404)
        if with_body:
            self.fetched.append(name)
        return self._send((self.root / name).read_bytes(), "application/octet-stream", with_body)

    def _files(self) -> dict[str, int]:
        files = [path for path in self.root.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.root)): path.stat().st_size for path in files}

    def _send(self, body: bytes, kind: str, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    class Here(Hub):
        root = tmp_path / "repo"
        fetched: list[str] = []  # noqa: RUF012 - of this one test

    server = ThreadingHTTPServer(("127.0.0.1", 0), Here)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    # The template is made from the address when the library is imported.
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield Here
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_autoencoder_from_the_hub(served: type[Hub]) -> None:
    portable, x_BD = random_portable(), activations()
    folder = served.root / "layers" / "8"
    folder.mkdir(parents=True)
    sparsify.write(portable, folder)
    (folder / "autoencoder.pt").write_bytes(b"a pickle")
    (served.root / "layers" / "9").mkdir()
    sparsify.write(random_portable(seed=1), served.root / "layers" / "9")
    model = scaling.load_autoencoder(f"{REPO}/layers/8")
    assert torch.equal(model.reconstruct(x_BD), model_of(portable).reconstruct(x_BD))
    assert (model.facts.source, model.facts.format) == (f"{REPO}/layers/8", "sparsify")
    assert sorted(served.fetched) == ["layers/8/cfg.json", "layers/8/sae.safetensors"]
    with pytest.raises(UserError, match="give the folder within the repository"):
        scaling.load_autoencoder(REPO)
    with pytest.raises(UserError, match=r"is no path on this machine, and the hub did not give"):
        scaling.load_autoencoder("someone/else")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", HubId("owner/name", "", None)),
        ("owner/name@main", HubId("owner/name", "", "main")),
        ("o-1/n.2/layers.3/k_4@v1", HubId("o-1/n.2", "layers.3/k_4", "v1")),
        ("name", None),
        ("/owner/name", None),
        ("./owner/name", None),
        ("../owner/name", None),
        ("owner/name/../other", None),
        ("owner/name/", None),
        ("owner/name@", None),
        ("C:\\owner\\name", None),
    ],
)
def test_ids(text: str, expected: HubId | None) -> None:
    assert HubId.parse(text) == expected


def test_what_is_no_id_and_no_path() -> None:
    with pytest.raises(UserError, match="no such file or folder, and it is no id of the hub"):
        scaling.load_autoencoder("./nowhere")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    remedy = r"pip install 'sae-scaling\[hub\]'"
    with pytest.raises(UserError, match=remedy):
        scaling.load_autoencoder("owner/name")
    with pytest.raises(UserError, match=remedy):
        hub.checked_target("owner/name")
    with pytest.raises(UserError, match="give OWNER/NAME"):
        hub.checked_target("name")


@pytest.mark.parametrize("public", [False, True])
def test_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, public: bool) -> None:
    calls: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(
        huggingface_hub, "create_repo", lambda repo, **options: calls.append((repo, options))
    )
    monkeypatch.setattr(
        huggingface_hub, "upload_folder", lambda **options: calls.append((None, options)) or "there"
    )
    assert hub.push(tmp_path, "owner/name/layer8@branch", public=public) == "there"
    assert calls == [
        ("owner/name", {"private": not public, "exist_ok": True}),
        (
            None,
            {
                "repo_id": "owner/name",
                "folder_path": tmp_path,
                "path_in_repo": "layer8",
                "revision": "branch",
            },
        ),
    ]


def test_a_push_that_fails_says_where_the_export_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    with pytest.raises(UserError, match=rf"401 Unauthorized.*{tmp_path}.*hf auth login"):
        hub.push(tmp_path, "owner/name", public=False)
