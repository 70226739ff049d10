"""Uploads to the Hub.  The token is the Hub client's: ``HF_TOKEN`` or ``hf auth login``, never a setting."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import httpx
from huggingface_hub import HfApi, get_token

from ..settings import FoundryError
from .settings import HUB_TOKEN


def push_folder(
    folder: Path, repo_id: str, private: bool, message: str, kind: Literal["model", "space"] = "model"
) -> str:
    """Create the repository where it is not there, upload the folder as one commit, return the commit's id.

    Raises:
        FoundryError: no login, a secret in the folder, or the Hub's refusal in one line.
    """
    require_login(repo_id)
    refuse_secrets(folder)
    api = HfApi()
    try:
        api.create_repo(
            repo_id,
            repo_type=kind,
            private=private,
            exist_ok=True,
            space_sdk="gradio" if kind == "space" else None,
        )
        commit = api.upload_folder(
            repo_id=repo_id, repo_type=kind, folder_path=folder, commit_message=message
        )
    except (OSError, ValueError, httpx.HTTPError) as error:  # the Hub's errors and the network's
        raise FoundryError(f"push to {repo_id}: {' '.join(str(error).split())[:300]}") from error
    return commit.oid


def require_login(repo_id: str) -> None:
    """Raise FoundryError where the Hub's client has no token."""
    if get_token() is None:
        raise FoundryError(f"push to {repo_id}: not logged in; run `hf auth login` or set HF_TOKEN")


def refuse_secrets(folder: Path) -> None:
    """Raise FoundryError where a file of the folder holds what looks like a Hub token, or this login's."""
    own = (get_token() or "").encode()
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix == ".safetensors":
            continue
        content = path.read_bytes()
        if HUB_TOKEN.search(content) or (own and own in content):
            raise FoundryError(f"{path}: holds a Hub token; remove it before publishing")
