"""The Hugging Face hub: ids, downloads and uploads. The one module that needs `huggingface_hub`.

An id is OWNER/NAME, OWNER/NAME/FOLDER, either with @REVISION at the end. Of a repository only the
two files of a format are fetched, never a pickle.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.errors import UserError

_ID = re.compile(
    r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:/(?P<folder>[^@]*[^@/]))?(?:@(?P<revision>[^@]+))?"
)


@dataclass(frozen=True)
class HubId:
    repo: str
    folder: str
    """Within the repository; "" is its root."""
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> HubId | None:
        """None for what cannot be an id."""
        found = _ID.fullmatch(text)
        if not found or ".." in text.split("/"):
            return None
        return cls(found["repo"], found["folder"] or "", found["revision"])


def download(hub_id: HubId, files: tuple[str, ...]) -> Path:
    """The folder on this disk that holds those of `files` that the id's folder has.

    Raises:
        UserError: no `huggingface_hub`, no such repository or revision, no network.
    """
    hub = _library()
    prefix = f"{hub_id.folder}/" if hub_id.folder else ""
    try:
        root = hub.snapshot_download(
            hub_id.repo,
            revision=hub_id.revision,
            allow_patterns=[f"{prefix}{name}" for name in files],
        )
    except (OSError, ValueError) as error:
        raise UserError(f"the hub did not give {hub_id.repo}: {error}") from error
    return Path(root) / hub_id.folder


def push(folder: Path, text: str, *, public: bool) -> str:
    """Upload the folder to the id, whose repository is made (private unless `public`) where there
    is none; returns its address.

    Raises:
        UserError: no `huggingface_hub`, no right to write, no network.
    """
    hub, hub_id = checked_target(text)
    try:
        hub.create_repo(hub_id.repo, private=not public, exist_ok=True)
        return str(
            hub.upload_folder(
                repo_id=hub_id.repo,
                folder_path=folder,
                path_in_repo=hub_id.folder or None,
                revision=hub_id.revision,
            )
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"--push {text} failed: {error}. The export is in {folder}; `hf auth login` gives this "
            "machine the right to write."
        ) from error


def checked_target(text: str) -> tuple[Any, HubId]:
    """The library and where to push to, before anything is written. Raises `UserError`."""
    hub_id = HubId.parse(text)
    if hub_id is None:
        raise UserError(f"--push {text}: give OWNER/NAME or OWNER/NAME/FOLDER.")
    return _library(), hub_id


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            "the Hugging Face hub needs a package more: pip install 'sae-scaling[hub]'."
        ) from error
    return huggingface_hub
