"""Reports as tables in the terminal."""

from __future__ import annotations

import shutil
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ... import numbers

MAX_WIDTH = 100


def console() -> Console:
    """At most 100 columns, so that a report reads the same in a terminal, a log and a page."""
    return Console(
        width=min(MAX_WIDTH, shutil.get_terminal_size((MAX_WIDTH, 40)).columns), highlight=False, markup=False
    )


class Section:
    """A title, a table and a line below it, each as wide as it needs to be.

    The first column holds words, the others numbers.
    """

    def __init__(self, title: str, *columns: str, caption: str | None = None) -> None:
        self.title, self.caption = title, caption
        self.table = Table(
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 2, 0, 0),
            show_edge=False,
            show_header=any(columns),
        )
        for index, column in enumerate(columns):
            self.table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")

    def add_row(self, *cells: str, style: str | None = None) -> None:
        self.table.add_row(*cells, style=style)

    def __rich__(self) -> Group:
        parts: list[Any] = [Text(self.title, style="bold"), self.table]
        if self.caption:
            parts.append(Text(self.caption, style="dim"))
        return Group(*parts, Text(""))


def print_model(report: dict[str, Any]) -> None:
    """``plan.py model``."""
    out = console()
    _heading(out, report["model"])
    out.print(parameter_table(report["parameters"]))
    out.print(flop_table(report["flops"]))
    out.print(share_table(report["flops"]))
    out.print(memory_table(report["memory"]))
    out.print(training_table(report["training"]))


def parameter_table(parameters: dict[str, Any]) -> Section:
    total = parameters["total"]
    table = Section("Parameters", "component", "count", "share", caption=_parameter_caption(parameters))
    for name, size in parameters["components"].items():
        table.add_row(name, f"{size:,}", numbers.percent(size / total))
    table.table.add_section()
    table.add_row("total", f"{total:,}", numbers.count(total), style="bold")
    if parameters["active"] != total:
        table.add_row(
            "active for one token", f"{parameters['active']:,}", numbers.count(parameters["active"])
        )
        rest = parameters["active_without_embedding"]
        table.add_row("active, input embedding out", f"{rest:,}", numbers.count(rest))
    return table


def _parameter_caption(parameters: dict[str, Any]) -> str | None:
    notes = []
    if parameters["selection_biases"]:
        notes.append(f"{parameters['selection_biases']:,} routing biases are saved but not trained")
    if parameters["prediction_layers"]:
        notes.append(f"multi-token-prediction layers, apart: {parameters['prediction_layers']:,}")
    return "\n".join(notes) or None


def flop_table(flops: dict[str, Any]) -> Section:
    """Forward FLOPs a token by component; training is three times as much."""
    table = Section(
        f"FLOPs a token at {flops['sequence_length']:,} tokens",
        "component", "full attention", "share", "causal", "share",
    )  # fmt: skip
    full, causal = flops["forward_per_token"]["full"], flops["forward_per_token"]["causal"]
    sums = sum(full.values()), sum(causal.values())
    for name in full:
        table.add_row(
            name, numbers.flops(full[name]), numbers.percent(full[name] / sums[0]),
            numbers.flops(causal[name]), numbers.percent(causal[name] / sums[1]),
        )  # fmt: skip
    table.table.add_section()
    table.add_row("forward", numbers.flops(sums[0]), "", numbers.flops(sums[1]))
    training = flops["training_per_token"]
    table.add_row(
        "training (x 3)", numbers.flops(training["full"]), "", numbers.flops(training["causal"]), style="bold"
    )
    step = flops["training_per_step"]
    words = f"one step of {flops['tokens_per_step']:,} tokens"
    table.add_row(words, numbers.flops(step["full"]), "", numbers.flops(step["causal"]))
    return table


def share_table(flops: dict[str, Any]) -> Section:
    table = Section(
        "Attention scores against sequence length", "sequence", "share, full", "share, causal",
        "training, full", "training, causal",
    )  # fmt: skip
    for row in flops["attention_share"]:
        here = row["sequence_length"] == flops["sequence_length"]
        table.add_row(
            f"{row['sequence_length']:,}", numbers.percent(row["full"]), numbers.percent(row["causal"]),
            numbers.flops(row["training_per_token_full"]), numbers.flops(row["training_per_token_causal"]),
            style="bold" if here else None,
        )  # fmt: skip
    return table


def memory_table(memory: dict[str, Any]) -> Section:
    """Every term of one rank's peak."""
    setup, peak = memory["setup"], memory["peak_bytes"]
    words = f"{setup['micro_batch']} x {setup['sequence_length']:,} tokens, "
    words += f"{setup['precision']}, {setup['sharding']}"
    ranks = f" on {setup['num_ranks']}" if setup["num_ranks"] > 1 else ""
    recompute = ", recomputing" if setup["checkpointing"] else ""
    title = f"Memory of one rank: {words}{ranks}\n{setup['execution']}, {setup['loss']} loss{recompute}"
    table = Section(title, "term", "size", "share", caption=_memory_caption(memory))
    for name, size in memory["terms_bytes"].items():
        if size:
            table.add_row(name, numbers.gib(size), numbers.percent(size / peak))
    table.table.add_section()
    table.add_row(f"peak (moment: {memory['fullest_moment']})", numbers.gib(peak), "", style="bold")
    if memory["outside_allocator_bytes"]:
        table.add_row("context and libraries beside it", numbers.gib(memory["outside_allocator_bytes"]))
    if memory["gpu_bytes"] is not None:
        table.add_row("the GPU has", numbers.gib(memory["gpu_bytes"]))
    return table


def _memory_caption(memory: dict[str, Any]) -> str:
    if memory["fits"] is None:
        return "no GPU memory to compare with"
    needed = memory["peak_bytes"] + memory["outside_allocator_bytes"]
    if memory["fits"]:
        return f"fits, {numbers.percent(1 - needed / memory['gpu_bytes'])} free"
    return (
        f"DOES NOT FIT: {numbers.gib(needed - memory['gpu_bytes'])} too much; `plan.py fit` finds what does"
    )


def training_table(training: dict[str, Any]) -> Section:
    title = f"Training on {training['num_gpus']} x {training['hardware']}"
    table = Section(title, "", "")
    if training["tokens"] is not None:
        table.add_row("tokens", f"{training['tokens']:,.0f} ({numbers.count(training['tokens'])})")
        table.add_row("FLOPs", numbers.flops(training["training_flops"]))
    if "unknown" in training:
        table.caption = f"no time: {training['unknown']}"
        return table
    mfu = "" if training["mfu"] is None else f" at {numbers.percent(training['mfu'])} MFU"
    table.add_row("tokens a second", f"{training['tokens_per_second']:,.0f}{mfu}")
    if training["num_gpus"] > 1:
        table.add_row("tokens a second and GPU", f"{training['tokens_per_second_per_gpu']:,.0f}")
    table.add_row("seconds a step", f"{training['step_seconds']:,.3g}")
    words = (
        "" if training["tokens"] is not None else f" for {numbers.count(training['costed_tokens'])} tokens"
    )
    table.add_row(f"time{words}", numbers.hours(training["hours"]), style="bold")
    if training["num_gpus"] > 1:
        table.add_row("GPU-hours", f"{training['gpu_hours']:,.0f}")
    if training["energy_kwh"] is not None:
        table.add_row("energy at the boards' power limit", f"{training['energy_kwh']:,.0f} kWh")
    if training["usd"] is not None:
        table.add_row("cost", numbers.dollars(training["usd"]))
    if training["mfu"] is not None:
        table.caption = f"MFU over the dense bf16 peak, full-attention FLOPs\n{training['mfu_source']}"
    return table


# ---------------------------------------------------------------------------------------- fit, serve, gpus


def print_fit(report: dict[str, Any]) -> None:
    """``plan.py fit``."""
    out = console()
    gpu, best = report["gpu"], report["best"]
    _heading(out, report["model"])
    table = Section(
        f"Largest micro-batch at {report['sequence_length']:,} tokens on {gpu['num_gpus']} x {gpu['name']}",
        "sharding", "recompute", "micro-batch", "device memory", "free",
        caption=f"{numbers.percent(gpu['margin'])} of {numbers.gib(gpu['bytes'])} stays free; fastest first",
    )  # fmt: skip
    for row in report["ways"]:
        fits = row["micro_batch"] > 0
        free = numbers.percent(1 - row["device_bytes"] / gpu["bytes"]) if fits else "does not fit"
        table.add_row(
            row["sharding"], "yes" if row["checkpointing"] else "no",
            f"{row['micro_batch']:,}" if fits else "-",
            numbers.gib(row["device_bytes"]), free, style=_fit_style(row, best),
        )  # fmt: skip
    out.print(table)
    if best is None:
        out.print("Nothing fits: shorten the sequence, use more GPUs, or a larger GPU.", style="bold")
        return
    out.print(memory_table(report["memory"]))
    out.print(_fit_advice(best), markup=False)


def _fit_style(row: dict[str, Any], best: dict[str, Any] | None) -> str | None:
    """Bold for the way that was chosen, dim for one that does not fit."""
    way = ("sharding", "checkpointing")
    if best is not None and all(row[name] == best[name] for name in way):
        return "bold"
    return None if row["micro_batch"] else "dim"


def _fit_advice(best: dict[str, Any]) -> str:
    words = f"--per_device_train_batch_size={best['micro_batch']}"
    if "accumulation" in best:
        by_tokens = f" --global_batch_tokens={best['batch_tokens']}"  # a recipe takes one of them
        by_passes = f" --gradient_accumulation_steps={best['accumulation']}"
        words += by_tokens if best["counts_in_tokens"] else by_passes
        words += f"   ({best['batch_tokens']:,} tokens a step)"
    if best["checkpointing"]:
        words += " --gradient_checkpointing=true"
    return f"pretrain with {words}"


def print_serve(report: dict[str, Any]) -> None:
    """``plan.py serve``."""
    out = console()
    gpu = report["gpu"]
    _heading(out, report["model"])
    bound = any(row["tokens_per_second_bound"] is not None for row in report["rows"])
    columns = [f"batch {batch:,}" for batch in report["batches"]] + ["largest batch"]
    caption = f"{numbers.percent(gpu['margin'])} of the memory stays free"
    caption += "; tok/s: memory bandwidth's bound for one sequence" if bound else ""
    table = Section(
        f"Key-value cache ({report['cache_dtype']}) on {gpu['num_gpus']} x {gpu['name']}",
        "context", *columns,
        *(["tok/s bound"] if bound else []), caption="\n".join([caption, *report["notes"]]),
    )  # fmt: skip
    for row in report["rows"]:
        cells = [numbers.gib(size) for size in row["cache_bytes"].values()] + [f"{row['largest_batch']:,}"]
        if bound:
            rate = row["tokens_per_second_bound"]
            cells.append("-" if rate is None else f"{rate:,.0f}")
        table.add_row(f"{row['context_tokens']:,}", *cells)
    out.print(f"weights in {report['dtype']}: {numbers.gib(report['weight_bytes'])}", style="bold")
    out.print(f"cache: {report['cache_bytes_per_token']:,} bytes a token")
    out.print()
    out.print(table)


def print_gpus(report: dict[str, Any]) -> None:
    """``plan.py gpus``."""
    out = console()
    table = Section(
        "Peaks in TFLOP/s: dense, and with 2:4 sparsity, which no training run sees", "GPU", "bf16", "fp8",
        "bf16 sparse", "fp8 sparse", "memory", "GB/s", "link GB/s", "W", "MFU",
        caption="memory as the driver reports it; MFU: typical, full-attention FLOPs over dense bf16",
    )  # fmt: skip
    for gpu in report["gpus"]:
        rates = (
            gpu[name] for name in ("bf16_tflops", "fp8_tflops", "bf16_sparse_tflops", "fp8_sparse_tflops")
        )
        table.add_row(
            gpu["name"], *("-" if rate is None else f"{rate:,.0f}" for rate in rates),
            f"{gpu['memory_mib'] / 1024:,.1f} GiB", f"{gpu['bandwidth_gb_s']:,.0f}",
            f"{gpu['link_gb_s']:,.0f}",
            f"{gpu['power_w']:,}", "-" if gpu["typical_mfu"] is None else f"{100 * gpu['typical_mfu']:.0f}%",
        )  # fmt: skip
    out.print(table)
    sources = Section("Sources", "GPU", "peaks and memory", "typical MFU")
    for column in sources.table.columns[1:]:
        column.justify = "left"
    for gpu in report["gpus"]:
        sources.add_row(gpu["name"], gpu["source"], gpu["mfu_source"] or "none we could check")
    out.print(sources)


def _heading(out: Console, model: dict[str, Any]) -> None:
    out.print()
    out.print(Text(model["source"], style="bold"), soft_wrap=True)
    out.print(f"{model['family']}: {model['description']}", markup=False)
    out.print()
