"""What a run was: settings, commit, versions, machine.  Written once at its start as ``run.json``."""

from __future__ import annotations

import dataclasses
import enum
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .files import write_atomically

RECORD_NAME = "run.json"
PACKAGES = (
    "torch transformers accelerate datasets tokenizers trl peft deepspeed lm_eval huggingface_hub "
    "gradio numpy"
).split()
SECRET_WORDS = ("token", "password", "secret", "api_key")
SHORTEST_SECRET = 8
# Tokens of the hub and of Weights & Biases; name and password in a URL; a token among its parameters.
CREDENTIALS = [
    (re.compile(r"\b(?:hf|wandb_v1)_\w{20,}"), "***"),
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), "***"),
    (re.compile(r"([?&][\w-]*(?:token|key|secret|password)=)[^&#\s]+", re.IGNORECASE), r"\1***"),
]
NOT_SECRET = ("_token_id", "_tokens", "tokens_", "token_id", "eos_token", "pad_token", "bos_token")


def write_run_record(output_dir: str | Path, settings: dict[str, Any], **facts: Any) -> Path:
    """Write ``run.json`` into ``output_dir`` atomically and return its path.

    Args:
        settings: resolved settings; dataclasses and enums are written as plain values and keys that
            could hold a credential (``hub_token``) are masked.
        facts: anything else worth keeping, such as the parameter count or the world size.
    """
    record = {
        "command": [Path(sys.argv[0]).name, *plain_words(sys.argv[1:])],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": package_versions(),
        "settings": plain_settings(settings),
        **facts,
    }
    path = Path(output_dir) / RECORD_NAME
    write_atomically(path, json.dumps(record, indent=2, sort_keys=False) + "\n")
    return path


def plain_settings(value: Any, key: str = "") -> Any:
    """JSON-ready copy of settings with credentials masked."""
    if _is_secret(key) and value is not None:
        return "***"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(name): plain_settings(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_settings(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    return value if isinstance(value, (int, float, bool, type(None))) else masked(str(value))


def plain_words(words: list[str]) -> list[str]:
    """Words of a command line; values of ``--hub_token=…`` and ``--hub_token …`` and all credentials masked."""
    plain: list[str] = []
    for word in words:
        name, equals, _ = word.partition("=")
        if word.startswith("--") and equals and _is_secret(name):
            plain.append(f"{name}=***")
        else:
            follows = bool(plain) and plain[-1].startswith("--") and "=" not in plain[-1]
            hidden = follows and _is_secret(plain[-1]) and not word.startswith("--")
            plain.append("***" if hidden else masked(word))
    return plain


def masked(text: str) -> str:
    """``text`` without credentials: those of this process's environment (HF_TOKEN ...), of a URL, of known form."""
    for pattern, stars in CREDENTIALS:
        text = pattern.sub(stars, text)
    for name, value in os.environ.items():
        if name.upper().endswith(("TOKEN", "_KEY", "SECRET", "PASSWORD")) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text


def _is_secret(key: str) -> bool:
    name = key.lower()
    return any(word in name for word in SECRET_WORDS) and not any(word in name for word in NOT_SECRET)


def git_commit(folder: str | Path | None = None) -> str | None:
    """Commit of the checkout that holds this package, with ``-dirty`` when files differ; None outside git."""
    where = Path(folder) if folder else Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=where, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None  # an installed package has no checkout: the version says what ran
    return answer.stdout.strip()


def package_versions() -> dict[str, str]:
    """Versions of Python and of those libraries of the stack that are installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_machine() -> dict[str, Any]:
    """Processor, cores and, where torch is already imported and sees one, the accelerator."""
    machine: dict[str, Any] = {
        "system": platform.system(),
        "processor": _processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name(0)
        machine["num_gpus"] = torch.cuda.device_count()
    return machine


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
