"""The tables of docs/pretrain.md, from the receipts of pretrain_speed.py, float8_parity.py and optimizers.py.

``quoted_numbers.py --write`` puts them into the page.  A row that no receipt holds is "not measured".
"""

from __future__ import annotations

import math
import textwrap
from typing import Any

from benchmarks.float8_parity import mean_of_last
from benchmarks.optimizers import final_loss
from benchmarks.pretrain_speed import VARIANTS, rates

SHIPPED, FLOAT8 = "ours, as shipped (ZeRO-1)", "ours, fp8"
COLD, WARM = "empty compile cache", "warm compile cache"
ONE_GPU, TWO_GPUS, FOUR_GPUS = "ZeRO-1 on 1 GPU", "ZeRO-1 on 2 GPUs", "ZeRO-1 on 4 GPUs"
STOCK, STOCK_COMPILED = "stock, eager", "stock, compiled"
LABELS = {
    SHIPPED: "the recipe: bf16, ZeRO-1",
    FLOAT8: "`--float8=true`, ZeRO-1",
    "ours, bf16 parameters, no ZeRO": "bf16 parameters, no ZeRO",
    "ours, fp32 parameters, no ZeRO": "fp32 parameters, no ZeRO",
    STOCK: "transformers' Qwen3, eager",
    STOCK_COMPILED: "transformers' Qwen3, compiled",
    "Liger, eager": "transformers' Qwen3 with Liger, eager",
}
SCENARIO_LABELS = {
    "whole again": "the same run again",
    "SIGKILL": "SIGKILL to a rank",
    "SIGUSR2": "SIGUSR2 to a rank",
    "SIGTERM": "SIGTERM to the launcher",
    "SIGSTOP": "SIGSTOP to a rank",
    "on one rank": "its middle, on one rank",
}
MEDIANS = "medians of the steps after the first two"
GOAL_MFU, GOAL_TOKENS, GOAL_FLOAT8_TOKENS = 0.60, 57_500, 72_000
GOAL_SCALING, GOAL_START_SECONDS, GOAL_LOSS = 0.98, 20, 0.005


def speed_section(
    speed: dict[str, Any],
    shapes: dict[str, Any],
    start: dict[str, Any],
    parity: dict[str, Any],
    scaling: dict[str, Any] | None = None,
) -> str:
    """What ran beside stock, the goals, where a step goes, other ways to run the recipe, and where a start goes.

    Args:
        scaling: several GPUs beside one; None where no machine with several was to be had.
    """
    rows, starts = measured_rows(speed), measured_rows(start)
    ranks = measured_rows(scaling) if scaling else {}
    parts = [
        [introduction(speed, "pretrain_speed", f"every row in the same call, {MEDIANS}")],
        speed_rows(rows),
        failed_rows(speed),
        goal_rows(rows, measured_row(start, WARM), parity, ranks),
        kernel_rows(rows),
        [introduction(shapes, "pretrain_shapes", f"four micro-batches a step, {MEDIANS}", speed)],
        speed_rows(measured_rows(shapes), beside_shipped=False),
        failed_rows(shapes),
        scaling_rows(scaling, ranks, speed) if scaling else [],
        [introduction(start, "pretrain_start", "one micro-batch a step, twice in turn", speed)],
        start_rows(starts),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def failed_rows(receipt: dict[str, Any]) -> list[str]:
    failures = [(name, row["failure"]) for name, row in receipt["rows"].items() if "failure" in row]
    return [f"- {LABELS.get(name, name)}: failed, {failure}" for name, failure in failures]


def measured_rows(receipt: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows that were measured and that the benchmark still has."""
    return {name: row for name, row in receipt["rows"].items() if "failure" not in row and name in VARIANTS}


def introduction(receipt: dict[str, Any], name: str, words: str, beside: dict[str, Any] | None = None) -> str:
    """What ran on what; the machine is named once where ``beside``, the receipt of the table above, has one alike."""
    machine = machine_of(receipt)
    where = "Such a machine, the same versions" if beside and machine_of(beside) == machine else machine
    commit, _, changed = receipt["commit"].partition("-")
    text = (
        f"{where}: `{receipt['command']}` at commit `{commit[:10]}`{' with uncommitted changes' if changed else ''}, "
        f"{words} ([receipt](../benchmarks/receipts/{name}.json)):"
    )
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def machine_of(receipt: dict[str, Any]) -> str:
    gpu, driver, power = (word.strip() for word in receipt["gpu_state"].split(",")[:3])
    versions = (
        f"{library} {receipt['versions'][library]}" for library in ("torch", "transformers", "deepspeed")
    )
    most = max((row.get("num_gpus", 1) for row in receipt["rows"].values()), default=1)
    count = "One" if most == 1 else f"{most} ×"
    return f"{count} {gpu} ({float(power.split()[0]):.0f} W, driver {driver}), {', '.join(versions)}"


def kernel_rows(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Milliseconds of a micro-batch by group of kernels, and the time in which none ran."""
    profiles = {name: rows[name]["profile"] for name in (SHIPPED, FLOAT8) if "profile" in rows.get(name, {})}
    if not profiles:
        return ["Where a step goes has no receipt yet; [log.md](log.md) has a note taken by hand."]
    shares = {name: kernel_milliseconds(profile) for name, profile in profiles.items()}
    groups = list(dict.fromkeys(group for found in shares.values() for group in found))
    lines = [
        "| where a micro-batch goes, ms | " + " | ".join(LABELS[name] for name in shares) + " |",
        "|---|" + "---:|" * len(shares),
    ]
    for group in groups:
        cells = [
            f"{found[group]:.1f} ({found[group] / sum(found.values()):.1%})" if group in found else ""
            for found in shares.values()
        ]
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return lines


def kernel_milliseconds(profile: dict[str, Any]) -> dict[str, float]:
    """Group -> milliseconds of one micro-batch, and "no kernel"; kernels that overlap count twice."""
    groups = {name: group["milliseconds"] for name, group in profile["groups"].items()}
    groups["no kernel"] = max(0.0, profile["span_milliseconds"] - profile["busy_milliseconds"])
    return {name: milliseconds / profile["micro_batches"] for name, milliseconds in groups.items()}


def start_rows(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Seconds since launch at which each moment of a start had come, with an empty and with a warm compile cache."""
    starts = {
        name: row["seconds_since_launch"] | {"first step": row["start_seconds"]} for name, row in rows.items()
    }
    lines = [
        "| seconds since launch | " + " | ".join(starts) + " |",
        "|---|" + "---:|" * len(starts),
    ]
    for moment in dict.fromkeys(moment for found in starts.values() for moment in found):
        cells = [f"{found[moment]:.1f}" if moment in found else "" for found in starts.values()]
        lines.append(f"| {moment} | {' | '.join(cells)} |")
    return lines


def speed_rows(rows: dict[str, dict[str, Any]], beside_shipped: bool = True) -> list[str]:
    """Markdown rows; the last column is the shipped recipe's rate over the row's."""
    lines = [
        "| what | micro-batch × accumulation × S | tokens/s | MFU | MFU, causal | peak GiB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    if beside_shipped:
        lines = [lines[0] + " recipe ÷ row |", lines[1] + "---:|"]
        shipped = rates(rows[SHIPPED])[0]
    for name, row in rows.items():
        speed, full, causal = rates(row)
        shares = " | ".join(f"{share:.1%}" if share else "" for share in (full, causal))
        batch = f"{row['micro_batch']} × {row['accumulation']} × {row['sequence_length']:,}"
        ratio = f" {'' if name == SHIPPED else format(shipped / speed, '.2f')} |" if beside_shipped else ""
        label = LABELS.get(name, name.removeprefix("ours, "))
        lines.append(
            f"| {label} | {batch} | {speed:,.0f} | {shares} | {row['peak_bytes'] / 2**30:.1f} |{ratio}"
        )
    return lines


def scaling_rows(
    scaling: dict[str, Any], rows: dict[str, dict[str, Any]], speed: dict[str, Any]
) -> list[str]:
    """Rates of each GPU, beside ZeRO-1 on one alone."""
    words = f"as shipped, rates of each GPU, {MEDIANS}"
    lines = speed_rows(rows, beside_shipped=False)
    shares = [f" {share_of_one(rows, name):.1%} |" for name in rows]
    lines = [
        line + more for line, more in zip(lines, [" of ZeRO-1 on 1 GPU |", "---:|", *shares], strict=True)
    ]
    return [introduction(scaling, "pretrain_scaling", words, speed), "", *lines, *failed_rows(scaling)]


def share_of_one(rows: dict[str, dict[str, Any]], name: str) -> float | None:
    """Rate of each GPU of a row over that of ZeRO-1 on one; None where the row was not measured."""
    return rates(rows[name])[0] / rates(rows[ONE_GPU])[0] if name in rows else None


def goal_rows(
    rows: dict[str, dict[str, Any]],
    start: dict[str, Any],
    parity: dict[str, Any],
    ranks: dict[str, dict[str, Any]],
) -> list[str]:
    """The goals of this stage, what was reached, and by how much a goal was missed (never rounded away)."""
    speed, mfu, _ = rates(rows[SHIPPED])
    float8 = rates(rows[FLOAT8])[0] if FLOAT8 in rows else None
    two, four = (share_of_one(ranks, name) for name in (TWO_GPUS, FOUR_GPUS))
    loss = max(map(abs, loss_changes(parity, "fp8")))
    return [
        "| goal | aim | measured | |",
        "|---|---:|---:|---|",
        goal("bf16, MFU", mfu, GOAL_MFU, "{:.1%}"),
        goal("bf16, tokens/s", speed, GOAL_TOKENS, "{:,.0f}"),
        goal("fp8, tokens/s", float8, GOAL_FLOAT8_TOKENS, "{:,.0f}"),
        goal("fp8, loss beside bf16's after 500 steps of real text", loss, GOAL_LOSS, "{:.2%}", at_most=True),
        goal("ZeRO-1 on 2 GPUs, rate of each over one alone", two, GOAL_SCALING, "{:.1%}"),
        goal("ZeRO-1 on 4 GPUs, rate of each over one alone", four, GOAL_SCALING, "{:.1%}"),
        goal("launch to first step, warm compile cache, s", start["start_seconds"], GOAL_START_SECONDS, "{:,.1f}", at_most=True),
    ]  # fmt: skip


def goal(name: str, value: float | None, aim: float, form: str, at_most: bool = False) -> str:
    sign, shown = "≤" if at_most else "≥", form.format(aim)
    if value is None:
        return f"| {name} | {sign} {shown} | not measured | |"
    missing = (value - aim if at_most else aim - value) / aim
    verdict = f"**missed by {math.ceil(1000 * missing) / 10:.1f}%**" if missing > 0 else "reached"
    return f"| {name} | {sign} {shown} | {form.format(value)} | {verdict} |"


def loss_changes(parity: dict[str, Any], name: str) -> tuple[float, float]:
    """Relative difference of a run's training loss and of its held-out loss from those of bf16."""
    run, bf16 = measured_row(parity, name), measured_row(parity, "bf16")
    training = mean_of_last(run["losses"]) / mean_of_last(bf16["losses"]) - 1
    return training, run["held_out_loss"] / bf16["held_out_loss"] - 1


def seconds_of_imports(row: dict[str, Any]) -> tuple[float, float]:
    """Until the recipe's own process began, and from there until all was imported."""
    moments = row["seconds_since_launch"]
    return moments["launcher"], moments["imports"] - moments["launcher"]


def measured_row(receipt: dict[str, Any], name: str) -> dict[str, Any]:
    """A row that the pages quote.

    Raises:
        SystemExit: the receipt does not hold it.
    """
    row = receipt["rows"].get(name, {"failure": "not there"})
    if "failure" in row:
        raise SystemExit(
            f"receipt of {receipt['command']}: {name}: {row['failure']}; the pages quote this row"
        )
    return row


def recovery_section(receipt: dict[str, Any]) -> str:
    """A column a topology, a line for what was done: exit code, seconds until all ranks had ended, how the run ended."""
    topologies = list(dict.fromkeys(row["topology"] for row in receipt["rows"]))
    scenarios = list(dict.fromkeys(row["scenario"] for row in receipt["rows"]))
    cells = {(row["scenario"], row["topology"]): recovery_cell(row) for row in receipt["rows"]}
    lines = [f"| | {' | '.join(topologies)} |", "|---|" + "---|" * len(topologies)]
    for scenario in scenarios:
        found = (cells.get((scenario, topology), "not measured") for topology in topologies)
        lines.append(f"| {SCENARIO_LABELS[scenario]} | {' | '.join(found)} |")
    return "\n".join(lines)


def recovery_cell(row: dict[str, Any]) -> str:
    """As in "69 after 5.3 s; equal", or how far apart the losses were."""
    if "failure" in row:
        return f"failed: {row['failure']}"
    end = "equal" if row["equal_weights"] and row["equal_optimizer"] else "weights differ"
    if not row["equal_losses"]:
        end = f"losses up to {row['largest_loss_difference']:.0e} apart"
    if "stopped" not in row:
        return end
    return f"{row['stopped'].get('exit_code', 'no word')} after {row['seconds_to_end']} s; {end}"


def optimizer_section(receipt: dict[str, Any]) -> str:
    """Every run of optimizers.py."""
    lines = [
        "| optimizer | learning rate | steps | tokens, millions | ms a step | training, s | held-out loss |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in receipt["rows"]:
        rates = " and ".join(f"{row[key]:g}" for key in ("muon_learning_rate", "learning_rate") if key in row)
        lines.append(
            f"| {row['optimizer']} | {rates} | {row['steps']:,} | {row['tokens'] / 1e6:.1f} | "
            f"{1e3 * row['step_seconds']:.1f} | {row['seconds']:.1f} | {final_loss(row):.3f} |"
        )
    return "\n".join(lines)
