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
from ..run_record import describe_machine, git_commit, package_versions, plain_settings, write_run_record
from . import harness
from .answers import all_answers, answer_table
from .comparison import compare, estimate
from .compression import compress
from .figures import draw_figures
from .identity import MARKDOWN_NAME, REPORT_NAME, RESULTS_NAME, complete_results, describe_model, identity_of
from .labels import STOP_RATE, in_order
from .outcomes import Outcomes, num_parameters, read_outcomes
from .report import build_report
from .selection import BITS_PER_BYTE, TEXTS, read_items, select_items
from .settings import EvaluationSettings
from .stages import Stage, stages_of
from .stopping import Answer, Prompt, outcomes_of
from .summary import build_markdown


def evaluate(settings: EvaluationSettings, console: Any) -> dict[str, Any]:
    """Measure what is not measured yet and write the report; returns the content of ``results.json``.

    Raises:
        FoundryError: a model or the data are missing, or a measurement failed.
    """
    output_dir = Path(settings.output_dir)
    models = {name: describe_model(folder) for name, folder in settings.model_folders().items()}
    stages = stages_of(settings.model_folders())
    identity = identity_of(settings, models, stages)
    stored = complete_results(output_dir, identity)
    if stored is not None:
        console.print(f"evaluate: complete already, {output_dir / REPORT_NAME} (nothing to do)")
        return stored
    start, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    write_run_record(output_dir, {"evaluation": settings}, inputs=identity)
    items = select_items(settings)
    device = device_of(settings)
    jobs = [job_of(settings, name, models[name], items, device, identity) for name in models]
    num_parallel = 1 if device == "cuda" else settings.parallel_models
    prompts: list[Prompt] = []
    answers: dict[str, list[Answer]] = {}

    def answer() -> None:
        drawn, given = all_answers(settings, models, device, identity, console)
        prompts.extend(drawn)
        answers.update(given)

    seconds = harness.run_jobs(jobs, num_parallel, console, meanwhile=answer)
    measured = list(zip(models.items(), jobs, strict=True))
    outcomes = {job.name: read_outcomes(job.folder) for job in jobs}
    for name, given in answers.items():
        outcomes[name][STOP_RATE] = outcomes_of(prompts, given)
    results = {
        "identity": identity,
        "experiment": Path(settings.data_dir).parent.name,
        "models": {
            name: model | {"num_parameters": num_parameters(job.folder)} for (name, model), job in measured
        },
        **scores_and_comparisons(outcomes),
        **compression_and_context(settings, items),
        "answers": answer_table(prompts, answers),
        "items": items,
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
    items: dict[str, list[int]],
    device: str,
    identity: dict[str, Any],
) -> harness.Job:
    """lm-eval's work on one model."""
    tasks = tuple(settings.tasks_of(name))
    own_items = {task: items[task] for task in tasks if task in items}
    parts = ("data_sha256", "tasks_sha256", "versions")
    return harness.Job(
        name=name,
        model=Path(model["folder"]),
        tasks=tasks,
        items=own_items,
        task_dir=Path(settings.task_dir),
        data_dir=Path(settings.data_dir),
        folder=Path(settings.output_dir) / "lm_eval" / name,
        device=device,
        batch_size=settings.batch_size,
        num_threads=max(1, (os.cpu_count() or 1) // settings.parallel_models),
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


def compression_and_context(settings: EvaluationSettings, items: dict[str, list[int]]) -> dict[str, Any]:
    """What gzip and xz reach on the documents that were measured, and how far back the models look."""
    if BITS_PER_BYTE not in items:
        return {}
    from transformers import AutoConfig, AutoTokenizer

    import modeling_foundry  # noqa: F401  (registers the Auto classes)

    lines = read_items(settings.data_dir, TEXTS)
    texts = [lines[index]["text"] for index in items[BITS_PER_BYTE]]
    compression = compress(texts)
    folder = list(settings.model_folders().values())[-1]
    max_positions = AutoConfig.from_pretrained(folder).max_position_embeddings
    num_tokens = sum(map(len, AutoTokenizer.from_pretrained(folder)(texts).input_ids))
    return {
        "compression": asdict(compression),
        "context": {
            "max_positions": max_positions,
            "num_bytes": max_positions * compression.num_bytes / num_tokens,
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
