"""The planner's memory forecast against peaks measured on H200, term by term.

    python benchmarks/plan_memory.py             # into runs/benchmarks/plan_memory.json
    python benchmarks/plan_memory.py --receipt   # into the receipt and the pages

Measured on one to four NVIDIA H200 (143,771 MiB), torch 2.11.0+cu130, transformers 5.17, with the flagship's
shape, S = 2,048, random tokens: ``torch.cuda.max_memory_allocated`` after warm-up.  The measurements are
copied here with what was run; those of the shipped recipe are read from the receipts of pretrain_speed.py.
Nothing is measured by this script.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import results
from modeling_foundry.planning import TrainingSetup, architecture_of, forecast_memory
from modeling_foundry.planning.formulas.memory import DEFAULT_CALIBRATION
from modeling_foundry.run_record import describe_machine, git_commit, package_versions
from modeling_foundry.settings import run

GIB = 2**30
FLAGSHIP = {
    "model_type": "foundry",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
# The loops measured compile the softmax of a chunk, which then needs no temporary: bf16 and fp32 logits.
COMPILED_SOFTMAX = {"logit_bytes_chunked": 6, "logit_bytes_chunked_fp8": 6}
HAND = {"calibration": COMPILED_SOFTMAX}
ZERO1 = {"sharding": "zero1", "accumulation": 4, **HAND}

DDP = {"sharding": "ddp", "num_ranks": 4, "accumulation": 4, **HAND}
DDP_PEAK_GIB = 107.1

# (what ran, measured GiB, how the planner describes it)
PEAKS = (
    ("stock Qwen3, eager, autocast, SDPA", 100.3, {"micro_batch": 8, "execution": "eager", "loss": "full"}),
    ("the same, whole model compiled", 68.3, {"micro_batch": 8, "execution": "compiled", "loss": "full"}),
    ("own loop: compiled body, chunked loss, autocast", 84.5, {"bf16_residual": True, **HAND}),
    ("the same, bf16 parameters", 71.4, {"precision": "bf16", **HAND}),
    ("the same, accumulation 4", 74.8, {"precision": "bf16", "accumulation": 4, **HAND}),
    (
        "the same, torchao float8",
        67.2,
        {
            "precision": "fp8",
            "execution": "compiled",
            "calibration": {**COMPILED_SOFTMAX, "whole_model_vectors": 0},
        },
    ),
    ("DeepSpeed ZeRO-1, 1 GPU", 90.3, ZERO1),
    ("DeepSpeed ZeRO-1, 2 GPUs", 80.1, {"num_ranks": 2, **ZERO1}),
    ("DeepSpeed ZeRO-1, 4 GPUs", 75.0, {"num_ranks": 4, **ZERO1}),
    (
        "DDP, fp32 parameters, autocast, 4 GPUs",
        DDP_PEAK_GIB,
        {"execution": "compiled", **DDP},
    ),
    ("Trainer, ZeRO-1, each layer compiled", 90.3, ZERO1),
    ("Trainer, ZeRO-1, whole body compiled", 93.4, {"execution": "compiled", **ZERO1}),
    ("Trainer, autocast, whole body compiled", 100.7, {"execution": "compiled", "accumulation": 4, **HAND}),
    ("Trainer, ZeRO-1, eager", 120.6, {"execution": "eager", **ZERO1}),
)
# (row of a receipt of pretrain_speed.py, what ran, how the planner describes it beside micro-batch, accumulation and S)
CHUNK = {"loss_chunk_tokens": 16384}
SHIPPED = {"sharding": "zero1", **CHUNK}
RECIPE_PEAKS = (
    ("ours, as shipped (ZeRO-1)", "the recipe: ZeRO-1", SHIPPED),
    ("warm compile cache", "the recipe: ZeRO-1, accumulation 1", SHIPPED),
    (
        "ours, bf16 parameters, no ZeRO",
        "the recipe: bf16 parameters, no ZeRO",
        {**CHUNK, "precision": "bf16"},
    ),
    ("ours, fp8", "the recipe: ZeRO-1, fp8", {"precision": "fp8", **SHIPPED}),
    ("DDP", "the recipe: DDP on one GPU", {"sharding": "ddp", **CHUNK}),
    ("FSDP2", "the recipe: FSDP2 on one GPU", {"sharding": "fsdp2", **CHUNK}),
    (
        "FSDP2, checkpointing",
        "the recipe: FSDP2, checkpointing",
        {"sharding": "fsdp2", "checkpointing": True, **CHUNK},
    ),
    ("ZeRO-1, S = 4,096", "the recipe: ZeRO-1, S = 4,096", SHIPPED),
    ("ZeRO-1, S = 8,192", "the recipe: ZeRO-1, S = 8,192", SHIPPED),
    ("ZeRO-1, checkpointing", "the recipe: ZeRO-1, checkpointing", {"checkpointing": True, **SHIPPED}),
    ("ZeRO-1, not compiled", "the recipe: ZeRO-1, eager", {"execution": "eager", **SHIPPED}),
    (
        "ZeRO-1, loss in one piece",
        "the recipe: ZeRO-1, loss in one piece",
        {**SHIPPED, "loss_chunk_tokens": 10**6},
    ),
    ("ZeRO-1, micro-batch 4", "the recipe: ZeRO-1, micro-batch 4", SHIPPED),
    ("ZeRO-1 on 2 GPUs", "the recipe: ZeRO-1 on 2 GPUs", {"num_ranks": 2, **SHIPPED}),
    ("DDP on 2 GPUs", "the recipe: DDP on 2 GPUs", {"num_ranks": 2, "sharding": "ddp", **CHUNK}),
    ("FSDP2 on 2 GPUs", "the recipe: FSDP2 on 2 GPUs", {"num_ranks": 2, "sharding": "fsdp2", **CHUNK}),
)
NOTES = (
    "Read off these rows: 12 and 6 bytes a logit (rows 1, 2), 6 for a chunk's (row 4), one more vector of the hidden "
    "size per layer under whole-body compilation (row 12), two buckets of 5e8 bf16 values for DeepSpeed (row 7).",
    "Rows 3, 5, 6, 8, 9, 11, 13, 14 and the recipe's use no constant of their own.",
    "Row 10 is described with an fp32 residual stream and whole-body compilation, as row 13; which one ran is not "
    "recorded.  `ddp_bf16_residual_error` is its error with a bf16 one and compiled layers.",
    "Left out: Liger kernels (93.6 GiB), whose fused loss and feed-forward the planner does not describe.",
)


def setup_of(description: dict) -> TrainingSetup:
    """The planner's description of one measured run."""
    values = {"micro_batch": 16, "sequence_length": 2048, **description}
    values["calibration"] = replace(DEFAULT_CALIBRATION, **values.get("calibration", {}))
    return TrainingSetup(**values)


def recipe_peaks(rows: Iterable[tuple[str, str, dict]]) -> Iterator[tuple[str, float, dict]]:
    """The rows that were measured, in the form of ``PEAKS``."""
    receipts = [
        results.RECEIPTS / f"pretrain_{table}.json" for table in ("speed", "shapes", "start", "scaling")
    ]
    measured = {
        name: row
        for path in receipts
        if path.exists()
        for name, row in json.loads(path.read_text())["rows"].items()
    }
    for name, label, description in rows:
        row = measured.get(name, {})
        if "peak_bytes" in row:
            batch = {key: row[key] for key in ("micro_batch", "accumulation", "sequence_length")}
            yield label, round(row["peak_bytes"] / GIB, 2), batch | description


def compare(name: str, measured: float, description: dict) -> dict[str, Any]:
    """One row of the receipt: forecast beside the measured peak."""
    forecast = forecast_memory(architecture_of(FLAGSHIP), setup_of(description))
    return {
        "run": name,
        "measured_gib": measured,
        "forecast_gib": round(forecast.peak / GIB, 2),
        "error": round(forecast.peak / GIB / measured - 1, 4),
        "setup": description,
        "terms_gib": {term: round(size / GIB, 2) for term, size in forecast.terms.items() if size},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--receipt", action="store_true", help=results.HELP)
    arguments = parser.parse_args()
    rows = [compare(*peak) for peak in (*PEAKS, *recipe_peaks(RECIPE_PEAKS))]
    other_ddp = compare("", DDP_PEAK_GIB, {"bf16_residual": True, **DDP})
    errors = [abs(row["error"]) for row in rows]
    receipt = {
        "what": "forecast of the peak of one rank against torch.cuda.max_memory_allocated on H200",
        "command": "python benchmarks/plan_memory.py",
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": package_versions(),
        "measured_on": {"gpu": "NVIDIA H200, 143,771 MiB", "torch": "2.11.0+cu130", "date": "2026-11-22"},
        "model": FLAGSHIP,
        "calibration": asdict(DEFAULT_CALIBRATION),
        "rows": rows,
        "largest_error": max(errors),
        "mean_error": round(sum(errors) / len(errors), 4),
        "ddp_bf16_residual_error": other_ddp["error"],
        "notes": NOTES,
    }
    for row in rows:
        print(f"{row['run']:<50} {row['measured_gib']:6.1f} {row['forecast_gib']:7.2f} {row['error']:+8.2%}")
    print(f"largest error {receipt['largest_error']:.2%}, mean {receipt['mean_error']:.2%}")
    results.finish("plan_memory", receipt, arguments.receipt)


if __name__ == "__main__":
    run(main)
