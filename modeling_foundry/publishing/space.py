"""The chat page as a Hugging Face Space: the files of ``app/``, pointed at the published model."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from pathlib import Path

import yaml
from packaging.version import Version

from ..files import write_atomically
from ..settings import FoundryError
from .settings import PublishSettings

APP_FOLDER = Path(__file__).resolve().parents[2] / "app"
# What the page imports; the pinned versions are those it was written with, on the Python it was written on.
REQUIRED = ("torch", "transformers", "huggingface_hub", "gradio", "fastapi", "uvicorn")


def write_space(
    settings: PublishSettings, folder: Path, family: str, license: str, revision: str | None = None
) -> None:
    """Write a folder that runs as a Space, and with ``python app.py`` anywhere.

    Args:
        license: of the weights, as the model's card says it.
        revision: commit of the model on the Hub that the page shall load; its newest where there is none.

    Raises:
        FoundryError: what :func:`pinned_versions` says.
    """
    versions = pinned_versions()
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(APP_FOLDER.glob("*.py")):
        shutil.copyfile(path, folder / path.name)
    pins = "".join(f"{name}=={version}\n" for name, version in versions.items())
    write_atomically(folder / "requirements.txt", pins)
    loaded = {"model": settings.repo_id, "revision": revision, "trust_remote_code": family == "foundry"}
    write_atomically(folder / "space.json", json.dumps(loaded, indent=1) + "\n")
    write_atomically(folder / "README.md", _readme(settings, license, versions["gradio"]))


def pinned_versions() -> dict[str, str]:
    """The versions here of what the page needs, as the package index has them.

    Raises:
        FoundryError: this is an installation without the repository's ``app/`` folder, or a library is missing or of
            a version that no index has.
    """
    if not (APP_FOLDER / "app.py").is_file():
        raise FoundryError("space_repo_id: needs the app/ folder of a checkout of the repository")
    versions = {}
    for name in REQUIRED:
        try:
            found = Version(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError as error:
            raise FoundryError(
                f"space_repo_id: {name} is not installed here, so its version cannot be pinned; install '.[app]'"
            ) from error
        if found.is_devrelease:
            raise FoundryError(
                f"space_repo_id: {name} {found} is on no package index; install a release of it"
            )
        versions[name] = found.public  # without +cpu or +cu130, which the index of a Space has not
    return versions


def _readme(settings: PublishSettings, license: str, gradio_version: str) -> str:
    metadata = {
        "title": settings.name, "sdk": "gradio", "sdk_version": gradio_version,
        # Text, not a number: 3.10 would be 3.1.  The Hub's default is 3.10, for which there is no such transformers.
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py", "models": [settings.repo_id], "license": license, "pinned": False,
    }  # fmt: skip
    return (
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n"
        f"A chat page for [{settings.repo_id}](https://huggingface.co/{settings.repo_id}). Whoever opens the "
        "Space can use it; to close it, make it private or set the secrets `APP_USER` and `APP_PASSWORD`.\n"
    )
