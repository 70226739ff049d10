"""The models' answers to held-out prompts, generated once and kept for the stop rate and the report."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...files import write_atomically
from ...settings import FoundryError
from ..items.prompts import Prompt
from ..settings import EvaluationSettings
from .stopping import Answer, answer_prompts


def all_answers(
    settings: EvaluationSettings,
    models: dict[str, dict[str, str]],
    prompts: list[Prompt],
    device: str,
    identity: dict[str, Any],
    console: Any,
) -> dict[str, list[Answer]]:
    """Each trained model's answers to the prompts of the stop rate."""
    answers: dict[str, list[Answer]] = {}
    for name in [name for name in models if name not in settings.untrained and prompts]:
        folder = Path(models[name]["folder"])
        path = Path(settings.output_dir) / "answers" / f"{name}.json"
        wanted = {
            "model": models[name],
            "prompts": [asdict(prompt) for prompt in prompts],
            "max_new_tokens": settings.max_new_tokens,
            "versions": identity["versions"],
        }
        wanted = json.loads(json.dumps(wanted))  # as it will be read back: lists for tuples
        stored = stored_answers(path, wanted)
        if stored is not None:
            console.print(f"answers {name}: measured already")
            answers[name] = stored
            continue
        start = time.perf_counter()
        new = answer_prompts(folder, prompts, settings.max_new_tokens, 2 * settings.batch_size, device)
        content = {"identity": wanted, "answers": [asdict(answer) for answer in new]}
        write_atomically(path, json.dumps(content, indent=1) + "\n")
        console.print(f"answers {name}: {len(prompts)} prompts, {time.perf_counter() - start:.0f} s")
        answers[name] = new
    return answers


def stored_answers(path: Path, wanted: dict[str, Any]) -> list[Answer] | None:
    """Answers of an earlier run of the same, or None."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return [Answer(**answer) for answer in content["answers"]] if content["identity"] == wanted else None
    except (ValueError, KeyError, TypeError) as error:
        raise FoundryError(f"{path}: not a file of answers; remove it and run again") from error


def answer_table(prompts: list[Prompt], answers: dict[str, list[Answer]]) -> list[dict[str, Any]]:
    """A row a prompt, for the report."""
    return [
        {
            "module": prompt.module,
            "function": prompt.function,
            "prompt": prompt.content,
            "truth": prompt.truth,
            "models": {name: asdict(given[index]) for name, given in answers.items()},
        }
        for index, prompt in enumerate(prompts)
    ]
