"""Measure the peaks of this project's own model on a CUDA GPU and hold the planner's forecast against them.

    python benchmarks/plan_peaks.py                    # the flagship's shape, every way below
    python benchmarks/plan_peaks.py --layers 4 --micro_batches 4

Random tokens, a plain loop: forward, backward, clipping, fused AdamW.  Each way runs in its own process, so that
no allocator remembers the last one.  The receipt says how far off each forecast is; nothing is corrected by it.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from modeling_foundry.files import write_atomically
from modeling_foundry.planning import TrainingSetup, architecture_of, forecast_memory
from modeling_foundry.run_record import describe_machine, git_commit, package_versions

RECEIPT = Path(__file__).parent / "receipts" / "plan_peaks.json"
GIB = 2**30
STEPS = 4
FLAGSHIP = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
WAYS = (
    {"precision": "bf16_mixed", "execution": "compiled_layers"},
    {"precision": "bf16_mixed", "execution": "eager"},
    {"precision": "bf16", "execution": "compiled_layers"},
    {"precision": "bf16", "execution": "eager"},
    {"precision": "bf16", "execution": "compiled_layers", "accumulation": 2},
    {"precision": "bf16_mixed", "execution": "eager", "checkpointing": True},
    {"precision": "bf16", "execution": "eager", "loss": "full"},
)


def measure(values: dict, setup: TrainingSetup) -> float:
    """GiB that ``torch.cuda.max_memory_allocated`` reports after the first step."""
    import torch

    from modeling_foundry import FoundryConfig, FoundryForCausalLM

    config = FoundryConfig(**values, max_position_embeddings=setup.sequence_length)
    dtype = torch.bfloat16 if setup.precision == "bf16" else torch.float32
    with torch.device("cuda"):
        model = FoundryForCausalLM._from_config(config, attn_implementation="cudnn_sdpa", dtype=dtype).train()
    if setup.execution == "compiled_layers":
        for layer in model.model.layers:
            layer.compile()
    if setup.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    shape = (setup.micro_batch, setup.sequence_length)
    for step in range(STEPS):
        if step == 1:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(setup.accumulation):
            tokens = torch.randint(0, values["vocab_size"], shape, device="cuda")
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=setup.precision == "bf16_mixed"):
                loss = model(input_ids=tokens, labels=tokens, skip_logits=setup.loss == "chunked").loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated() / GIB


def compare(values: dict, way: dict, micro_batch: int) -> dict:
    """One way in a process of its own: measured and forecast peak."""
    setup = TrainingSetup(**{"micro_batch": micro_batch, "sequence_length": 2048, **way})
    question = json.dumps({"values": values, "way": way, "micro_batch": micro_batch})
    answer = subprocess.run([sys.executable, __file__, "--one", question], capture_output=True, text=True)
    row = {"micro_batch": micro_batch, **way}
    if answer.returncode:
        reason = answer.stderr.strip().splitlines()[-1:] or ["no message"]
        return row | {"failed": reason[0][:200]}
    measured = json.loads(answer.stdout.splitlines()[-1])
    forecast = forecast_memory(architecture_of(values | {"model_type": "foundry"}), replace(setup))
    return row | {
        "measured_gib": round(measured, 2),
        "forecast_gib": round(forecast.peak / GIB, 2),
        "error": round(forecast.peak / GIB / measured - 1, 4),
        "fullest_moment": forecast.fullest_moment,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=FLAGSHIP["num_hidden_layers"])
    parser.add_argument("--micro_batches", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        asked = json.loads(arguments.one)
        setup = TrainingSetup(
            **{"micro_batch": asked["micro_batch"], "sequence_length": 2048, **asked["way"]}
        )
        print(json.dumps(measure(asked["values"], setup)))
        return
    values = FLAGSHIP | {"num_hidden_layers": arguments.layers}
    rows = []
    for micro_batch in arguments.micro_batches:
        for way in WAYS:
            rows.append(compare(values, way, micro_batch))
            print(json.dumps(rows[-1]), flush=True)
    import torch  # the machine's GPU is described by torch

    torch.cuda.is_available()
    receipt = {
        "what": "peak of one rank in a plain loop over this project's model, measured and forecast",
        "command": f"python benchmarks/plan_peaks.py --layers {arguments.layers} --micro_batches "
        + " ".join(map(str, arguments.micro_batches)),
        "commit": git_commit(),
        "machine": describe_machine(),
        "versions": package_versions(),
        "model": values,
        "rows": rows,
    }
    write_atomically(RECEIPT, json.dumps(receipt, indent=2) + "\n")


if __name__ == "__main__":
    main()
