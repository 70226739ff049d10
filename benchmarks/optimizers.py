"""AdamW and Muon after the same training time on real text: the held-out loss of each.

    python benchmarks/optimizers.py --models=[110m] --seconds=45          # one GPU, under ten minutes
    python benchmarks/optimizers.py --models=[0.6b] --seconds=120         # one GPU, about twelve
    python benchmarks/optimizers.py --models=[tiny] --seconds=5 --use_cpu=true

The text is the running Python's standard library, whole module families held out: 1.5 million tokens, which a GPU has
soon read many times.  ``data_dir`` is another; ``recipes/prepare_data.py --include_tests=true`` prepares four times as
many.  Each run is recipes/pretrain.py in a process of its own with a time limit.  A short run first measures the seconds
of a step; then each optimizer gets as many steps as fit in ``seconds`` and a cosine schedule over just those, at every
learning rate of ``MODELS``.  Runs under ``folder`` that are complete are read, not repeated, so an interrupted benchmark
goes on; after a change of the code remove the folder.  The table comes last; the result goes to
runs/benchmarks/optimizers.json, after each run.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import results  # noqa: E402
from modeling_foundry.run_record import describe_machine, git_commit, package_versions  # noqa: E402
from modeling_foundry.settings import FoundryError, parse, run  # noqa: E402

CALIBRATION_STEPS, WARM_STEPS = 24, 12
NUM_EVALUATIONS = 8
TOLERANCE = 0.05  # of the training times that are compared
KEPT = (
    "step",
    "tokens",
    "loss",
    "eval_loss",
    "learning_rate",
    "grad_norm",
    "step_seconds",
    "tokens_per_second",
)


@dataclass(frozen=True)
class Model:
    """A size, the batch it trains with, and the learning rates each optimizer is given.

    Args:
        words: settings of recipes/pretrain.py.
        adamw: learning rates.
        muon: learning rates of the matrices, and of the rest (AdamW's part).
        data: settings of recipes/prepare_data.py.
    """

    words: str
    adamw: tuple[float, ...]
    muon: tuple[tuple[float, float], ...]
    data: str = "--vocab_size=16384"


MODELS = {
    "tiny": Model(
        "--hidden_size=64 --intermediate_size=128 --num_hidden_layers=2 --num_attention_heads=2 "
        "--num_key_value_heads=1 --head_dim=32 --sequence_length=64 --per_device_train_batch_size=8 "
        "--max_eval_sequences=32",
        (3e-3,), ((0.02, 3e-3),), "--vocab_size=512 --max_modules=16",
    ),
    "110m": Model(
        "--hidden_size=768 --intermediate_size=2048 --num_hidden_layers=14 --num_attention_heads=12 "
        "--num_key_value_heads=4 --head_dim=64 --sequence_length=1024 --per_device_train_batch_size=64 "
        "--max_eval_sequences=256",
        (6e-4, 1e-3, 3e-4, 3e-3), ((0.02, 3e-3), (0.02, 1e-3), (0.01, 3e-3)),
    ),
    "0.6b": Model(
        "--hidden_size=1280 --intermediate_size=3840 --num_hidden_layers=26 --num_attention_heads=16 "
        "--num_key_value_heads=8 --head_dim=128 --tie_word_embeddings=true --sequence_length=1024 "
        "--per_device_train_batch_size=16 --gradient_accumulation_steps=4 --max_eval_sequences=256",
        (6e-4, 2e-3), ((0.02, 2e-3), (0.01, 2e-3)),
    ),
}  # fmt: skip
COMMON = "--weight_decay=0.1 --adam_beta1=0.9 --adam_beta2=0.95 --save_strategy=no --seed=1337"
GPU = "--bf16=true --compile_layers=true --dataloader_num_workers=2"


@dataclass
class Settings:
    """What to run."""

    models: list[str] = field(
        default_factory=lambda: ["110m", "0.6b"], metadata={"help": f"of {', '.join(MODELS)}"}
    )
    seconds: float = field(default=75.0, metadata={"help": "training time of each run"})
    limit_seconds: int = field(default=240, metadata={"help": "time one process may take, start included"})
    use_cpu: bool = field(default=False, metadata={"help": "train on the CPU"})
    adamw: list[float] = field(
        default_factory=list, metadata={"help": "these learning rates of AdamW only, no other run"}
    )
    steps: int = field(default=0, metadata={"help": "steps of each run, instead of what fits in seconds"})
    data_dir: str = field(
        default="", metadata={"help": "tokens to train on; default the Python standard library"}
    )
    folder: str = field(default="runs/optimizers", metadata={"help": "where data and runs are kept"})
    receipt: bool = field(default=False, metadata={"help": results.HELP})


def main() -> int:
    (settings,) = parse(Settings, description=__doc__.splitlines()[0])
    if unknown := [name for name in settings.models if name not in MODELS]:
        raise FoundryError(f"models: {unknown[0]} is none of {', '.join(MODELS)}")
    rows: list[dict[str, Any]] = []
    for name in settings.models:
        for row in rows_of(name, settings):
            rows.append(row)
            # After each: a lent machine may be gone before the last.
            results.save_result("optimizers", result_of(rows, settings))
            print_row(row)
    results.finish("optimizers", result_of(rows, settings), settings.receipt)
    print_table(rows)
    return 1 if any("failure" in row for row in rows) else 0


def rows_of(name: str, settings: Settings) -> Iterator[dict[str, Any]]:
    """One row a run: both optimizers at their first learning rates, then at their next ones."""
    model, folder = MODELS[name], Path(settings.folder)
    data = data_of(name, settings)
    if not settings.data_dir:
        call([f"recipes/prepare_data.py --output_dir={data}", model.data], settings.limit_seconds)
    words = [model.words, COMMON, f"--data_dir={data}", "--use_cpu=true" if settings.use_cpu else GPU]
    adamw = [("adamw", {"learning_rate": rate}) for rate in settings.adamw or model.adamw]
    muon = [("muon", {"learning_rate": rest, "muon_learning_rate": rate}) for rate, rest in model.muon]
    num_steps = dict.fromkeys(("adamw", "muon"), settings.steps) if settings.steps else {}
    in_turn = adamw if settings.adamw else filter(None, chain.from_iterable(zip_longest(adamw, muon)))
    for optimizer, rates in in_turn:
        row = {"model": name, "optimizer": optimizer, **rates}
        chosen = [*words, f"--optimizer={optimizer}", *(f"--{key}={value}" for key, value in rates.items())]
        started = time.perf_counter()
        try:
            if optimizer not in num_steps:
                seconds = measured_step_seconds(chosen, folder / f"{name}_{optimizer}_calibration", settings)
                num_steps[optimizer] = max(CALIBRATION_STEPS, round(settings.seconds / seconds))
            label = "_".join(f"{value:g}" for value in rates.values())
            output = folder / f"{name}_{optimizer}_{label}_{num_steps[optimizer]}_steps"
            row |= train(chosen, output, num_steps[optimizer], settings)
        except FoundryError as error:
            row["failure"] = str(error)
        yield row | {"process_seconds": round(time.perf_counter() - started, 1)}


def data_of(name: str, settings: Settings) -> Path:
    return Path(settings.data_dir or Path(settings.folder, f"data_{name}" if name == "tiny" else "data"))


def described(data: Path) -> dict[str, Any]:
    """How the data was prepared, and its tokens and SHA-256; nothing where that file is not ours."""
    made = data / "data.json"
    splits = {split: json.loads((data / f"{split}.ds.json").read_text()) for split in ("train", "heldout")}
    return {
        "prepared": json.loads(made.read_text())["settings"] if made.is_file() else None,
        **{f"{split}_tokens": about["num_tokens"] for split, about in splits.items()},
        **{f"{split}_sha256": about["tokens_sha256"] for split, about in splits.items()},
    }


def measured_step_seconds(words: list[str], output: Path, settings: Settings) -> float:
    """Median seconds of a step after the first ones, which compile and warm up."""
    more = f"--max_steps={CALIBRATION_STEPS} --logging_steps=2 --eval_strategy=no --output_dir={output}"
    call(["recipes/pretrain.py", *words, more], settings.limit_seconds)
    return statistics.median(step_seconds(read_log(output)))


def train(words: list[str], output: Path, num_steps: int, settings: Settings) -> dict[str, Any]:
    """One whole run; its held-out losses, step time and log."""
    more = (
        f"--max_steps={num_steps} --warmup_steps={num_steps // 20} --logging_steps=4 --output_dir={output} "
    )
    more += f"--eval_strategy=steps --eval_steps={num_steps // NUM_EVALUATIONS} --eval_on_start=true"
    call(["recipes/pretrain.py", *words, more], settings.limit_seconds)
    log = read_log(output)
    of_step = statistics.median(step_seconds(log))
    return {
        "steps": num_steps,
        "tokens": next(line["tokens"] for line in reversed(log) if "tokens" in line),
        "step_seconds": of_step,
        "seconds": num_steps * of_step,
        "held_out": {line["step"]: line["eval_loss"] for line in log if "eval_loss" in line},
        "log": [{key: line[key] for key in KEPT if key in line} for line in log],
    }


def step_seconds(log: list[dict[str, Any]]) -> list[float]:
    return [line["step_seconds"] for line in log if "step_seconds" in line and line["step"] > WARM_STEPS]


def read_log(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def call(words: list[str], limit_seconds: int) -> None:
    """Run one of the recipes in a process of its own.

    Raises:
        FoundryError: it failed or took longer than ``limit_seconds``.
    """
    command = " ".join(words).split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True,
            timeout=limit_seconds,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise FoundryError(f"{command[0]}: more than {limit_seconds} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        raise FoundryError(f"{command[0]}: exit code {done.returncode}: {last[:300]}")


def result_of(rows: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    import torch  # noqa: F401  (describe_machine names the GPU that an imported torch sees)

    return {
        "command": f"python benchmarks/optimizers.py {' '.join(sys.argv[1:])}".strip(),
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": package_versions(),
        "convention": "seconds = steps x median step; held_out = nats a token of held-out modules, by step",
        "models": {name: vars(MODELS[name]) for name in settings.models},
        "data": {name: described(data_of(name, settings)) for name in settings.models},
        "rows": rows,
    }


def print_row(row: dict[str, Any]) -> None:
    rates = ", ".join(f"{row[key]:g}" for key in ("muon_learning_rate", "learning_rate") if key in row)
    name = f"{row['model']:6} {row['optimizer']:6} {rates:14}"
    if "failure" in row:
        print(f"{name} failed: {row['failure']}", flush=True)
        return
    print(
        f"{name} {row['steps']:6,} {row['tokens'] / 1e6:8.1f} {row['step_seconds'] * 1e3:8.1f} {row['seconds']:8.1f} "
        f"{final_loss(row):9.4f} {row['process_seconds']:9.0f}",
        flush=True,
    )


def print_table(rows: list[dict[str, Any]]) -> None:
    """All runs; then, for each model, the best run of each optimizer and when Muon passed AdamW's last loss."""
    print(
        f"\n{'model':6} {'':6} {'learning rate':14} {'steps':>6} {'Mtokens':>8} {'step ms':>8} {'train s':>8} "
        f"{'held-out':>9} {'process s':>9}"
    )
    for row in rows:
        print_row(row)
    whole = [row for row in rows if "failure" not in row]
    for name in dict.fromkeys(row["model"] for row in whole):
        best = {
            optimizer: min(
                (row for row in whole if (row["model"], row["optimizer"]) == (name, optimizer)),
                key=final_loss,
                default=None,
            )
            for optimizer in ("adamw", "muon")
        }
        if best["adamw"] and best["muon"]:
            print(verdict(name, best["adamw"], best["muon"]))


def final_loss(row: dict[str, Any]) -> float:
    return row["held_out"][max(row["held_out"], key=int)]  # JSON makes the steps text


def verdict(name: str, adamw: dict[str, Any], muon: dict[str, Any]) -> str:
    reached = [step for step, loss in sorted(muon["held_out"].items()) if loss <= final_loss(adamw)]
    when = f"after {reached[0] * muon['step_seconds']:.0f} s" if reached else "at no evaluation"
    if abs(muon["seconds"] / adamw["seconds"] - 1) > TOLERANCE:
        when += "; the times differ too much to compare: measure again on an idle machine"
    return (
        f"{name}: Muon {final_loss(muon) - final_loss(adamw):+.4f} nats a token against AdamW at "
        f"{muon['seconds']:.0f} s and {adamw['seconds']:.0f} s; it was at AdamW's last loss {when}"
    )


if __name__ == "__main__":
    run(main)
