"""The chat page as a Hugging Face Space: the files of ``app/``, pointed at the published model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from ..files import write_atomically
from ..run_record import package_versions
from ..settings import FoundryError
from .settings import PublishSettings

APP_FOLDER = Path(__file__).resolve().parents[2] / "app"
REQUIRED = ("torch", "transformers", "huggingface_hub", "gradio")


def write_space(settings: PublishSettings, folder: Path, family: str, revision: str | None = None) -> None:
    """Write a folder that runs as a Space, and with ``python app.py`` anywhere.

    Args:
        revision: commit of the model on the Hub that the page shall load; its newest where there is none.

    Raises:
        FoundryError: this is an installation without the repository's ``app/`` folder.
    """
    if not (APP_FOLDER / "app.py").is_file():
        raise FoundryError("space_repo_id: needs the app/ folder of a checkout of the repository")
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(APP_FOLDER.glob("*.py")):
        shutil.copyfile(path, folder / path.name)
    versions = package_versions()
    pins = [f"{name}=={str(versions[name]).split('+')[0]}" for name in REQUIRED if versions.get(name)]
    write_atomically(folder / "requirements.txt", "\n".join([*pins, "fastapi", "uvicorn"]) + "\n")
    loaded = {"model": settings.repo_id, "revision": revision, "trust_remote_code": family == "foundry"}
    write_atomically(folder / "space.json", json.dumps(loaded, indent=1) + "\n")
    write_atomically(folder / "README.md", _readme(settings, versions.get("gradio")))


def _readme(settings: PublishSettings, gradio_version: str | None) -> str:
    metadata = {
        "title": settings.name, "sdk": "gradio", "sdk_version": gradio_version, "app_file": "app.py",
        "models": [settings.repo_id], "license": settings.license, "pinned": False,
    }  # fmt: skip
    kept = {key: value for key, value in metadata.items() if value is not None}
    return (
        f"---\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)}---\n\n"
        f"A chat page for [{settings.repo_id}](https://huggingface.co/{settings.repo_id}). Whoever opens the "
        "Space can use it; to close it, make it private or set the secrets `APP_USER` and `APP_PASSWORD`.\n"
    )
