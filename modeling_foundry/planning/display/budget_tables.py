"""The reports of a budget as tables: its explanation, its optima, and what a search found."""

from __future__ import annotations

from typing import Any

from ... import numbers
from .tables import Section, console

LEGEND = (
    "t: tied embeddings; loss: nats per token of a 32,000-entry vocabulary\n"
    "read/tok: bytes read for one generated token at batch 32 and 4,096 tokens of context\n"
    "train: peak of one rank"
)


def print_budget(report: dict[str, Any]) -> None:
    """``plan.py budget``."""
    out = console()
    out.print()
    given = report["given"]
    if given is None:
        out.print(_compute(report), markup=False)
    else:
        out.print(_steps(given))
        out.print(_other_laws(report))
    out.print(_optima(report))
    for note in _notes(report):
        out.print(f"note: {note}", markup=False)


def _compute(report: dict[str, Any]) -> str:
    compute = report["compute"]
    return f"C = {numbers.power(compute['flops'])} FLOPs ({compute['words']})"


def _steps(given: dict[str, Any]) -> Section:
    table = Section("From the budget to the loss", "", "how", "value")
    table.table.columns[1].justify = "left"
    table.table.columns[0].no_wrap = table.table.columns[2].no_wrap = True
    for step in given["steps"]:
        table.add_row(step["title"], step["how"], step["value"])
    return table


def _other_laws(report: dict[str, Any]) -> Section:
    given = report["given"]
    losses = {report["law"]["name"]: given["loss"]} | given["other_laws"]
    table = Section("The same N and D under each law", "law", "loss")
    for name, loss in losses.items():
        table.add_row(name, f"{loss:.4f}", style="bold" if name == report["law"]["name"] else None)
    table.caption = f"the given model's loss is {given['loss_over_optimum']:+.4f} from the optimum's"
    return table


def _optima(report: dict[str, Any]) -> Section:
    has_epochs = report["caps"]["unique_tokens"] is not None
    columns = ["law", "N", "95% of N", "D", "epochs", "D/N", "loss", "± 95%"]
    if not has_epochs:
        columns.remove("epochs")
    title = f"The best N and D for {numbers.power(report['compute']['flops'])} FLOPs"
    table = Section(title, *columns, caption=_bounds(report))
    for row in report["optima"]:
        interval = row["parameters_interval"]
        cells = [
            row["law"],
            numbers.count(row["parameters"]),
            "-" if interval is None else " to ".join(map(numbers.count, interval)),
            numbers.count(row["tokens"]),
            *([f"{row['epochs']:.2f}"] if has_epochs else []),
            f"{row['tokens_per_parameter']:.1f}",
            f"{row['loss']:.4f}",
            "-" if row["half_width"] is None else f"{row['half_width']:.4f}",
        ]
        table.add_row(*cells, style="bold" if row["law"] == report["law"]["name"] else None)
    return table


def _bounds(report: dict[str, Any]) -> str:
    chosen = report["optima"][0]
    words = "C = 6 N D; a dash: no covariance is published"
    if chosen["bound_by"]:
        words += f"; bound by the cap on {' and '.join(chosen['bound_by'])}"
    if chosen["unspent_flops"]:
        words += (
            f"; {numbers.percent(chosen['unspent_flops'] / report['compute']['flops'])} of the budget unspent"
        )
    return words


def _notes(report: dict[str, Any]) -> list[str]:
    given, chosen = report["given"], report["optima"][0]
    notes = [f"{report['law']['name']}: {report['law']['source']}"]
    if given is not None:
        notes += given["notes"] + [f"given model: {warning}" for warning in given["warnings"]]
        if given["unspent_flops"] > 1e-6 * report["compute"]["flops"]:
            notes.append(
                f"{given['unspent_flops']:.3g} FLOPs stay unspent: {given['epochs']:g} epochs of the dataset"
            )
    return notes + [f"optimum: {warning}" for warning in chosen["warnings"]]


# ------------------------------------------------------------------------------------------------ search


def print_search(report: dict[str, Any]) -> None:
    """``plan.py search``."""
    out = console()
    out.print()
    setup = report["setup"]
    out.print(_compute(report), markup=False)
    words = f"{report['num_considered']:,} candidates, {report['num_allowed']:,} within the constraints"
    out.print(
        f"{words} ({setup['num_gpus']} x {setup['gpu']}, micro-batch {setup['micro_batch']})", markup=False
    )
    out.print()
    out.print(_candidates("Least predicted loss", report["best"]))
    out.print(_candidates("Nothing is better in loss, serving and memory at once", report["front"]))
    out.print(_flatness(report))
    out.print(_candidates("Recommended: the cheapest to serve of those", [report["recommended"]], LEGEND))
    for note in report["notes"]:
        out.print(f"note: {note}", markup=False)
    if "emitted" in report:
        out.print(_emitted(report["emitted"]))


def _candidates(title: str, rows: list[dict[str, Any]], caption: str | None = None) -> Section:
    table = Section(
        title, "layers", "hidden", "heads", "FFN", "rows", "N", "D", "loss", "read/tok", "train",
        caption=caption,
    )  # fmt: skip
    for row in rows:
        heads = f"{row['num_attention_heads']}/{row['num_key_value_heads']}x{row['head_dim']}"
        table.add_row(
            f"{row['num_hidden_layers']}", f"{row['hidden_size']:,}", heads, f"{row['intermediate_size']:,}",
            f"{row['vocab_size']:,}{'t' if row['tie_word_embeddings'] else ' '}",
            numbers.count(row["total_parameters"]), numbers.count(row["tokens"]), f"{row['loss']:.4f}",
            f"{row['decode_bytes_per_token'] / 2**20:,.0f} MiB", numbers.gib(row["training_bytes"]),
        )  # fmt: skip
    return table


def _flatness(report: dict[str, Any]) -> str:
    flat = report["flatness"]
    if flat is None:
        return f"{report['law']['name']} publishes no covariance: how flat the optimum is cannot be said.\n"
    ranges = flat["ranges"]
    size = " to ".join(numbers.count(value) for value in ranges["total_parameters"])
    tokens = " to ".join(numbers.count(value) for value in ranges["tokens"])
    return (
        f"The optimum is flat: {flat['num_tied']:,} candidates ({numbers.percent(flat['share'])})\n"
        f"differ from the best by less than the law can tell (95%): N {size}, D {tokens},\n"
        f"{ranges['num_hidden_layers'][0]:.0f} to {ranges['num_hidden_layers'][1]:.0f} layers.\n"
    )


def _emitted(emitted: dict[str, Any]) -> str:
    schedule = emitted["schedule"]
    lines = [f"wrote {path}" for path in emitted["paths"]]
    lines.append(
        f"{schedule['max_steps']:,} steps of {emitted['tokens_per_step']:,} tokens, learning rate "
        f"{schedule['learning_rate']:g}, warm-up {schedule['warmup_steps']:,} steps"
    )
    return "\n".join(lines)
