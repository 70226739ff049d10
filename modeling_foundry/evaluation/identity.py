"""What decides a result: weights, data, tasks, settings, versions.  Only for the same is it used again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..files import sha256_of_file
from ..run_record import package_versions, plain_settings
from ..settings import FoundryError, sought
from .items.prompts import prompts_file
from .items.selection import FILE_OF_TASK, file_of
from .settings import EvaluationSettings
from .stages import Stage

RESULTS_NAME, REPORT_NAME, MARKDOWN_NAME = "results.json", "report.html", "results.md"
MEASURING_VERSIONS = ("torch", "transformers", "lm_eval")
# Settings that say where or how fast, not what; models stand in the identity with their hashes.
NEUTRAL_SETTINGS = ("output_dir", "parallel_models", "models")


def describe_model(folder: Path) -> dict[str, str]:
    """Folder and hashes of a checkpoint: what was measured can be told from what was meant.

    Raises:
        FoundryError: there is no checkpoint.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise FoundryError(
            f"{sought(folder)}: no checkpoint here (config.json, *.safetensors); run the stage that makes it first"
        )
    texts = sorted(folder.glob("*.json")) + sorted(folder.glob("*.jinja"))
    others = [path for path in texts if path not in weights]
    return {
        "folder": str(folder),
        "weights_sha256": _joint_hash(weights),
        "files_sha256": _joint_hash(others),
    }


def _joint_hash(paths: list[Path]) -> str:
    return hashlib.sha256(
        "".join(f"{path.name}:{sha256_of_file(path)};" for path in paths).encode()
    ).hexdigest()


def identity_of(
    settings: EvaluationSettings, models: dict[str, dict[str, str]], stages: list[Stage]
) -> dict[str, Any]:
    """Everything that decides the results; results are used again only for the same."""
    versions = package_versions()
    chosen = {key: value for key, value in plain_settings(settings).items() if key not in NEUTRAL_SETTINGS}
    read = [file_of(task, settings) for task in FILE_OF_TASK] + [prompts_file(settings)]
    data = list(dict.fromkeys(path for path in read if path is not None))
    tasks = sorted(Path(settings.task_dir).glob("*.yaml")) + sorted(Path(settings.task_dir).glob("*.py"))
    history = [[stage.name, stage.complete, stage.log] for stage in stages]
    return {
        "models": models,
        "settings": chosen,
        "data_sha256": _joint_hash([path for path in data if path.is_file()]),
        "tasks_sha256": _joint_hash(tasks),
        "stages_sha256": hashlib.sha256(json.dumps(history).encode()).hexdigest(),
        "versions": {name: versions.get(name) for name in MEASURING_VERSIONS},
    }


def complete_results(output_dir: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Stored results of exactly this evaluation, or None.

    Raises:
        FoundryError: the stored file is torn.
    """
    path = output_dir / RESULTS_NAME
    if not path.is_file() or not (output_dir / REPORT_NAME).is_file():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        same = results["identity"] == identity
    except (ValueError, KeyError, TypeError) as error:
        raise FoundryError(f"{path}: not the results of an evaluation; remove it and run again") from error
    return results if same else None
