"""The evaluation of an experiment from start, or from where it was, to its report."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..run_record import (
    describe_machine,
    git_commit,
    package_versions,
    plain_settings,
    write_run_record,
)
from ..settings import FoundryError
from . import harness
from .asked import Asked, data_variables, what_is_asked
from .comparison import compare, estimate
from .identity import (
    MARKDOWN_NAME,
    REPORT_NAME,
    RESULTS_NAME,
    complete_results,
    describe_model,
    identity_of,
)
from .items.prompts import prompts_file
from .items.selection import BITS_PER_BYTE, file_of
from .items.task_names import require_names
from .measuring.answers import all_answers, answer_table
from .measuring.compression import compress
from .measuring.context_room import needs_chat
from .measuring.stopping import Answer, outcomes_of
from .measuring.tokens import characters
from .outcomes import Outcomes, num_parameters, read_outcomes
from .report.figures import draw_figures
from .report.labels import STOP_RATE, in_order
from .report.report import build_report
from .report.summary import build_markdown
from .settings import EvaluationSettings
from .stages import Stage, stages_of


def evaluate(settings: EvaluationSettings, console: Any) -> dict[str, Any]:
    """Measure what is not measured yet and write the report; returns the content of ``results.json``.

    Raises:
        FoundryError: a model or the data are missing, or a measurement failed.
    """
    output_dir = Path(settings.output_dir)
    require_device(settings)
    require_names(settings.tasks, Path(settings.task_dir))
    models = {name: describe_model(folder) for name, folder in settings.model_folders().items()}
    stages = stages_of(settings.model_folders())
    identity = identity_of(settings, models, stages)
    stored = complete_results(output_dir, identity)
    if stored is not None:
        console.print(f"evaluate: complete already, {output_dir / REPORT_NAME} (nothing to do)", markup=False)
        return stored
    start, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    write_run_record(output_dir, {"evaluation": settings}, inputs=identity)
    asked = what_is_asked(settings, console)
    device = device_of(settings)
    jobs = [job_of(settings, name, models[name], asked, device, identity) for name in models]
    num_parallel = 1 if device == "cuda" else settings.parallel_models
    answers: dict[str, list[Answer]] = {}

    def answer() -> None:
        answers.update(all_answers(settings, models, asked.prompts, device, identity, console))

    seconds = harness.run_jobs(jobs, num_parallel, console, meanwhile=answer)
    measured = list(zip(models.items(), jobs, strict=True))
    not_compared: list[str] = []
    outcomes = {job.name: read_outcomes(job.folder, not_compared) for job in jobs}
    for name, given in answers.items():
        outcomes[name][STOP_RATE] = outcomes_of(asked.prompts, given)
    results = {
        "identity": identity,
        "experiment": settings.experiment(),
        "models": {
            name: model | {"num_parameters": num_parameters(job.folder)} for (name, model), job in measured
        },
        **scores_and_comparisons(outcomes),
        **compression_and_context(asked),
        "answers": answer_table(asked.prompts, answers),
        "prompts_file": str(prompts_file(settings)),
        "heldout_file": str(file_of(BITS_PER_BYTE, settings)),
        "items": asked.items,
        "left_out": [asdict(one) for one in asked.left_out],
        "not_compared": sorted(set(not_compared)),
        "settings": plain_settings(settings),
        "machine": describe_machine(),
        "versions": package_versions(),
        "commit": git_commit(),
        "started": started,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": {**seconds, "total": round(time.perf_counter() - start, 1)},
    }
    write_outputs(output_dir, results, stages)
    return results


def require_device(settings: EvaluationSettings) -> None:
    """Raises FoundryError where a GPU is asked for and torch sees none."""
    if settings.device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise FoundryError("device: cuda: torch sees no CUDA device here; expected cpu or auto")


def device_of(settings: EvaluationSettings) -> str:
    """``cpu`` or ``cuda``."""
    if settings.device != "auto":
        return settings.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def job_of(
    settings: EvaluationSettings,
    name: str,
    model: dict[str, str],
    asked: Asked,
    device: str,
    identity: dict[str, Any],
) -> harness.Job:
    """lm-eval's work on one model."""
    tasks = tuple(asked.tasks_of[name])
    own_items = {task: asked.items[task] for task in tasks}
    parts = ("data_sha256", "tasks_sha256", "versions")
    return harness.Job(
        name=name,
        model=Path(model["folder"]),
        tasks=tasks,
        items=own_items,
        task_dir=Path(settings.task_dir),
        folder=Path(settings.output_dir) / "lm_eval" / name,
        device=device,
        batch_size=settings.batch_size,
        num_threads=max(1, (os.cpu_count() or 1) // settings.parallel_models),
        only_ours=asked.only_ours,
        in_chat=needs_chat(asked.tasks[task] for task in tasks),
        variables=data_variables(settings),
        identity={
            "model": model, "tasks": list(tasks), "items": own_items, "device": device,
            "batch_size": settings.batch_size, **{part: identity[part] for part in parts},
        },
    )  # fmt: skip


def scores_and_comparisons(outcomes: dict[str, dict[str, Outcomes]]) -> dict[str, Any]:
    """Scores of every model, and the paired difference of each with the one before it that has the metric."""
    scores: dict[str, Any] = {}
    comparisons = []
    for metric in in_order({metric for measured in outcomes.values() for metric in measured}):
        having = [name for name in outcomes if metric in outcomes[name]]
        measured = [outcomes[name][metric] for name in having]
        scores[metric] = {
            "higher_is_better": measured[0].higher_is_better,
            "is_share": all(one.is_binary for one in measured),
            "models": {name: _plain(estimate(one)) for name, one in zip(having, measured, strict=True)},
        }
        for place in range(1, len(having)):
            pair = {"metric": metric, "before": having[place - 1], "after": having[place]}
            comparisons.append(pair | _plain(compare(measured[place - 1], measured[place])))
    return {"scores": scores, "comparisons": comparisons}


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass for JSON, which has no NaN."""
    return {
        key: None if isinstance(item, float) and math.isnan(item) else item
        for key, item in asdict(value).items()
    }


def compression_and_context(asked: Asked) -> dict[str, Any]:
    """What gzip and xz reach on the documents that were measured, and how far back the models look."""
    if BITS_PER_BYTE not in asked.items:
        return {}
    documents = asked.tasks[BITS_PER_BYTE].eval_docs["text"]
    texts = [documents[index] for index in asked.items[BITS_PER_BYTE]]
    compression = compress(texts)
    reader = list(asked.readers.values())[-1]
    num_tokens = sum(len(characters(reader.tokenizer, text)) for text in texts)
    return {
        "compression": asdict(compression),
        "context": {
            "max_positions": reader.max_length,
            "num_bytes": reader.max_length * compression.num_bytes / num_tokens,
        },
    }


def write_outputs(output_dir: Path, results: dict[str, Any], stages: list[Stage]) -> None:
    """Pictures and report, and ``results.json`` last: where it stands, everything is there."""
    (output_dir / RESULTS_NAME).unlink(missing_ok=True)
    figures = draw_figures(results, stages)
    for name, png in figures.items():
        write_atomically(output_dir / name, png)
    write_atomically(output_dir / MARKDOWN_NAME, build_markdown(results))
    write_atomically(output_dir / REPORT_NAME, build_report(results, stages, figures))
    write_atomically(output_dir / RESULTS_NAME, json.dumps(results, indent=1, allow_nan=False) + "\n")
