"""Every measured number in README.md and docs/, written from the receipt it comes from.

    python benchmarks/quoted_numbers.py           # every sentence below must stand on its page with the receipts' numbers
    python benchmarks/quoted_numbers.py --write   # put the receipts' numbers into the sentences and the tables

A sentence is a template: its words find the place on the page, ``{}`` is a number.  ``tests/test_quoted_numbers.py`` also
refuses a measured-looking number on a page that no sentence here covers.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import pretrain_table as table  # noqa: E402
from benchmarks.optimizers import final_loss  # noqa: E402
from benchmarks.pretrain_speed import rates  # noqa: E402
from benchmarks.quickstart import readme_section  # noqa: E402
from modeling_foundry.files import write_atomically  # noqa: E402
from modeling_foundry.planning import count_parameters, read_model  # noqa: E402

RECEIPTS = ROOT / "benchmarks" / "receipts"
NUMBER = r"([−+-]?\d(?:[\d,.]*\d)?)"


@dataclass(frozen=True)
class Quote:
    """A sentence of a page, and the numbers its ``{}`` stand for."""

    page: str
    template: str
    values: tuple[str, ...]

    def pattern(self) -> re.Pattern[str]:
        """Finds the sentence with whatever numbers and line breaks it has."""
        parts = [r"\s+".join(map(re.escape, part.split(" "))) for part in self.template.split("{}")]
        return re.compile(NUMBER.join(parts))


def receipt(name: str) -> dict[str, Any]:
    return json.loads((RECEIPTS / f"{name}.json").read_text())


def quotes() -> Iterator[Quote]:
    """All sentences, page by page."""
    yield from parameter_quotes()
    yield from speed_quotes(receipt("pretrain_speed"))
    yield from card_quotes(receipt("pretrain_speed"), receipt("pretrain_scaling"))
    yield from start_quotes(receipt("pretrain_start"))
    yield from parity_quotes(receipt("float8_parity"))
    yield from optimizer_quotes(receipt("optimizers"))
    yield from quickstart_quotes(receipt("quickstart"))
    yield from tokenization_quotes(receipt("tokenization_speed"), receipt("corpus_tokenization"))
    yield from example_quotes(receipt("data_examples"))
    yield from loading_quotes(receipt("data_loading"), receipt("pretrain_speed"))
    yield from planner_quotes(receipt("plan_memory"), receipt("plan_scaling_law"))
    yield from kernel_quotes(receipt("attention_backends"))


def parameter_quotes() -> Iterator[Quote]:
    def count(experiment: str) -> tuple[str]:
        model = read_model(str(ROOT / "recipes" / experiment / "pretrain.yaml"))
        return (f"{count_parameters(model.architecture).total:,}",)

    yield Quote("README.md", "a {}-parameter model", count("quickstart"))
    yield Quote("README.md", "# {} parameters", count("qwen3_1.8b"))
    yield Quote("docs/quickstart.md", "4 layers x 192, {} parameters", count("quickstart"))
    yield Quote("docs/pretrain.md", "The flagship has {} parameters", count("qwen3_1.8b"))


def speed_quotes(speed: dict[str, Any]) -> Iterator[Quote]:
    names = (table.SHIPPED, table.FLOAT8, table.STOCK, table.STOCK_COMPILED)
    rows = [table.measured_row(speed, name) for name in names]
    shipped, float8, stock, compiled = (rates(row)[0] for row in rows)
    yield Quote(
        "README.md",
        "trains the flagship recipe, as shipped, at {} tokens/s ({}% MFU), {} times transformers' own Qwen3 under the same "
        "Trainer, {} times the same compiled, and at {} tokens/s in fp8",
        (
            f"{shipped:,.0f}", f"{100 * rates(rows[0])[1]:.1f}", f"{shipped / stock:.2f}",
            f"{shipped / compiled:.2f}", f"{float8:,.0f}",
        ),
    )  # fmt: skip


def card_quotes(speed: dict[str, Any], scaling: dict[str, Any]) -> Iterator[Quote]:
    rows = table.measured_row(speed, table.SHIPPED), table.measured_row(scaling, table.ONE_GPU)
    yield Quote(
        "docs/pretrain.md",
        "runs the recipe as shipped at {}% MFU, the one of the table of several GPUs at {}%",
        tuple(f"{100 * rates(row)[1]:.1f}" for row in rows),
    )


def start_quotes(start: dict[str, Any]) -> Iterator[Quote]:
    cold, warm = (table.measured_row(start, name) for name in (table.COLD, table.WARM))
    yield Quote(
        "docs/pretrain.md",
        "takes {} s with an empty compile cache and {} s with a warm one; {} s of the warm start pass before the "
        "recipe's own process begins, {} s more are its imports",
        (
            *(f"{row['start_seconds']:.0f}" for row in (cold, warm)),
            *(f"{seconds:.0f}" for seconds in table.seconds_of_imports(warm)),
        ),
    )


def parity_quotes(parity: dict[str, Any]) -> Iterator[Quote]:
    for template, name in (
        ("fp8's training loss is {}% from bf16's and its held-out loss {}%", "fp8"),
        ("in rounding alone end {}% and {}% apart", "bf16, other rounding"),
    ):
        changes = table.loss_changes(parity, name)
        yield Quote(
            "docs/pretrain.md",
            template,
            tuple(f"{100 * change:+.2f}".replace("-", "−") for change in changes),
        )


def optimizer_quotes(optimizers: dict[str, Any]) -> Iterator[Quote]:
    best = {row["optimizer"]: row for row in sorted(optimizers["rows"], key=final_loss, reverse=True)}
    adamw, muon = best["adamw"], best["muon"]
    passed = min(int(step) for step, loss in muon["held_out"].items() if loss <= final_loss(adamw))
    yield Quote(
        "docs/pretrain.md",
        "A step of Muon takes {} times as long; it was below AdamW's last loss after {} of {} s",
        (
            f"{muon['step_seconds'] / adamw['step_seconds']:.2f}",
            f"{passed * muon['step_seconds']:.0f}",
            f"{adamw['seconds']:.0f}",
        ),
    )
    corpus = optimizers["data"]["110m"]["train_tokens"]
    yield Quote(
        "docs/pretrain.md",
        "The corpus holds {} million tokens, so AdamW read it {} times and Muon {} times",
        (f"{corpus / 1e6:.1f}", *(f"{row['tokens'] / corpus:.1f}" for row in (adamw, muon))),
    )


def quickstart_quotes(quickstart: dict[str, Any]) -> Iterator[Quote]:
    counts, pretrain = quickstart["data"]["table"], quickstart["stages"]["pretrain"]
    tokens = max(line["tokens"] for line in pretrain["samples"] if "tokens" in line)
    yield Quote(
        "docs/quickstart.md",
        "sees {}% of the training tokens in {} minutes, at {} tokens a second",
        (
            f"{100 * tokens / counts['tokens'][0]:.0f}",
            f"{pretrain['training_seconds'] / 60:.1f}",
            f"{tokens / pretrain['training_seconds']:,.0f}",
        ),
    )
    share = f"{100 * counts['of them in one module'][0] / counts['preference pairs'][0]:.0f}"
    yield Quote("docs/quickstart.md", "of about the same length; {}% of the wrong ones", (share,))
    yield Quote("docs/data.md", "another function of the same side. {}% come from the same module", (share,))
    yield Quote("docs/data.md", "The {} modules", (f"{sum(counts['documents'])}",))
    yield Quote(
        "docs/data.md", "held-out side of many kinds with {} documented", (f"{counts['conversations'][1]}",)
    )


def tokenization_quotes(speed: dict[str, Any], corpus: dict[str, Any]) -> Iterator[Quote]:
    medians, ours = speed["medians"], speed["medians"]["DocumentEncoder"]
    megabytes = f"{speed['corpus']['bytes'] / 1e6:.1f}"
    texts = speed["corpus"]["awkward_texts"]
    yield Quote(
        "docs/data.md",
        "With Qwen3's tokenizer, {} MB of standard-library source in {} documents and two workers, datatrove's own tokenizer "
        "step makes {} MB a second into ids, ours {}: {} times as many (median of {} rounds in turn, {} to {}), with the same "
        "ids in all {} documents and {} awkward short texts; with the start of the processes {} times",
        (
            megabytes, f"{speed['corpus']['documents']:,}", f"{medians['datatrove']['step_megabytes_per_second']:.1f}",
            f"{ours['step_megabytes_per_second']:.1f}", f"{ours['step_ratio']:.1f}",
            f"{len(speed['variants']['DocumentEncoder'])}", *(f"{ratio:.1f}" for ratio in ours["step_ratio_range"]),
            f"{speed['identical_documents']['DocumentEncoder']:,}",
            f"{speed['identical_awkward_texts']['DocumentEncoder']:,}", f"{ours['process_ratio']:.1f}",
        ),
    )  # fmt: skip
    yield Quote(
        "docs/data.md",
        "`bpe-qwen` was faster still ({} times) and differed on {} of the awkward texts",
        (
            f"{medians['bpe-qwen']['step_ratio']:.1f}",
            f"{texts - speed['identical_awkward_texts']['bpe-qwen']}",
        ),
    )
    yield Quote(
        "docs/data.md", "the test folders where they are installed ({} MB on a full build)", (megabytes,)
    )
    rates_seen = corpus["megabytes_per_second"]
    yield Quote(
        "docs/data.md",
        "took {} MB of text a second on two cores",
        (f"{corpus['median_megabytes_per_second']:.1f}",),
    )
    yield Quote(
        "docs/data.md",
        "{} to {} over its rounds",
        (f"{min(rates_seen):.1f}", f"{max(rates_seen):.1f}"),
    )
    forecast, hours = corpus["forecast"], corpus["forecast"]["core_hours"]
    yield Quote(
        "docs/data.md",
        "At {} bytes a token (an assumption for English web text, not measured) its {}B tokens are {} TB of text, so at "
        "that rate, a forecast: **{} core-hours**",
        (
            f"{forecast['bytes_per_token']}", f"{forecast['tokens'] / 1e9:.0f}",
            f"{forecast['tokens'] * forecast['bytes_per_token'] / 1e12:.1f}", f"{hours:.0f}",
        ),
    )  # fmt: skip
    yield Quote(
        "docs/data.md",
        "| hours (forecast) | {} | {} | {} | {} |",
        (f"{hours / 2:.0f}", *(f"{hours / cores:.1f}" for cores in (16, 64, 256))),
    )
    yield Quote("docs/data.md", "The tokens take {} TB", (f"{forecast['tokens'] * 4 / 1e12:.1f}",))


def example_quotes(examples: dict[str, Any]) -> Iterator[Quote]:
    python = (examples["versions"]["python"],)
    yield Quote("docs/data.md", "twenty modules of Python {}'s standard library", python)
    yield Quote("docs/data.md", "Python {}, the progress bars left out", python)
    yield Quote("docs/data.md", "The second command on Python {}", python)


def loading_quotes(loading: dict[str, Any], speed: dict[str, Any]) -> Iterator[Quote]:
    medians = loading["medians"]
    worker, masked = (medians[name]["tokens_per_second"] for name in ("worker", "worker_masked"))
    h200 = rates(table.measured_row(speed, table.SHIPPED))[0]
    slowest = max(start["seconds"] for start in loading["samples"]["start"])
    yield Quote(
        "docs/data.md",
        "SlimPajama's size ({} shards, {}B tokens, its token files sparse) a fresh process has the first {} sequences of step {} "
        "after {} s, the median of five; the first, the slowest, took {} s. One loader worker then delivers {}M tokens a "
        "second, {}M with `document_mask`: {} and {} times what one H200 trains on",
        (
            f"{loading['shards']:,}", f"{loading['tokens'] / 1e9:.0f}", f"{loading['batch_sequences']}",
            f"{loading['step']:,}", f"{medians['start']['seconds']:.2f}",
            f"{slowest:.2f}", f"{worker / 1e6:.1f}", f"{masked / 1e6:.1f}",
            f"{worker / h200:.0f}", f"{masked / h200:.0f}",
        ),
    )  # fmt: skip


def planner_quotes(memory: dict[str, Any], law: dict[str, Any]) -> Iterator[Quote]:
    yield Quote(
        "docs/plan.md",
        "{} runs on H200 ([receipt](../benchmarks/receipts/plan_memory.json)): the largest error is {}%, the mean {}%",
        (
            f"{len(memory['rows'])}", f"{100 * memory['largest_error']:.1f}", f"{100 * memory['mean_error']:.2f}",
        ),
    )  # fmt: skip
    other = f"{-100 * memory['ddp_bf16_residual_error']:.1f}"
    yield Quote("docs/plan.md", "with the other the forecast is {}% too low", (other,))
    yield Quote("docs/plan.md", "bootstraps it {} times", (f"{law['num_bootstraps']:,}",))
    parameters, tokens = law["fitted_range"]["parameters"], law["fitted_range"]["tokens"]
    yield Quote(
        "docs/plan.md",
        "Outside the fitted range ({}M to {}B parameters, {}B to {}B tokens)",
        (
            f"{parameters[0] / 1e6:.0f}", f"{parameters[1] / 1e9:.0f}",
            f"{tokens[0] / 1e9:.1f}", f"{tokens[1] / 1e9:.0f}",
        ),
    )  # fmt: skip


def kernel_quotes(attention: dict[str, Any]) -> Iterator[Quote]:
    rows, loss = attention["rows"], attention["rows"]["linear_cross_entropy"]
    yield Quote(
        "docs/log.md",
        "eager {} ms, sdpa {}, cudnn_sdpa {}, flex_attention {}.",
        tuple(
            f"{statistics.median(rows[name]['compiled_step_ms_samples']):.1f}"
            for name in ("eager", "sdpa", "cudnn_sdpa", "flex_attention")
        ),
    )
    yield Quote(
        "docs/log.md",
        "Loss of {} tokens over {} rows: {} GiB peak and {} ms in chunks, {} GiB and {} ms plain.",
        (
            f"{loss['num_tokens']:,}", f"{loss['vocab_size']:,}", f"{loss['linear']['peak_gib']:.1f}",
            f"{loss['linear']['ms']:.0f}", f"{loss['plain']['peak_gib']:.1f}", f"{loss['plain']['ms']:.0f}",
        ),
    )  # fmt: skip


def sections() -> dict[tuple[str, str], str]:
    """(page, marker) -> what stands between ``<!-- marker -->`` and ``<!-- /marker -->``."""
    names = ["pretrain_speed", "pretrain_shapes", "pretrain_start", "float8_parity"]
    if (RECEIPTS / "pretrain_scaling.json").exists():  # needs a machine with several GPUs
        names.append("pretrain_scaling")
    return {
        ("README.md", "quickstart"): readme_section(receipt("quickstart")),
        ("docs/pretrain.md", "pretrain_speed"): table.speed_section(*(receipt(name) for name in names)),
        ("docs/pretrain.md", "optimizers"): table.optimizer_section(receipt("optimizers")),
        ("docs/pretrain.md", "pretrain_recovery"): table.recovery_section(receipt("pretrain_recovery")),
    }


def section_pattern(marker: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {marker} -->\n)(.*?)(<!-- /{marker} -->)", re.DOTALL)


def filled(page: str, text: str) -> str:
    """A page's text with the receipts' numbers.

    Raises:
        SystemExit: a sentence or a marker does not stand on the page.
    """
    for (owner, marker), content in sections().items():
        if owner == page:
            found = section_pattern(marker).search(text) or missing(page, f"<!-- {marker} -->")
            text = text[: found.start(2)] + content + "\n" + text[found.end(2) :]
    for quote in quotes():
        if quote.page == page:
            found = quote.pattern().search(text) or missing(page, quote.template)
            for group in reversed(range(len(quote.values))):
                start, end = found.span(group + 1)
                text = text[:start] + quote.values[group] + text[end:]
    return text


def filled_pages() -> dict[Path, str]:
    """Every page that quotes a receipt, as it should read; raises as :func:`filled` does."""
    names = sorted({quote.page for quote in quotes()} | {page for page, _ in sections()})
    return {ROOT / name: filled(name, (ROOT / name).read_text()) for name in names}


def missing(page: str, what: str) -> Any:
    raise SystemExit(f"{page}: does not hold: {what}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="change the pages")
    write = parser.parse_args().write
    stale = 0
    for page, new in filled_pages().items():
        old = page.read_text()
        print(f"{'same   ' if new == old else 'written' if write else 'DIFFERS'} {page.relative_to(ROOT)}")
        stale += new != old
        if write and new != old:
            write_atomically(page, new)
    return 1 if stale and not write else 0


if __name__ == "__main__":
    sys.exit(main())
