"""A measured number on a page is its receipt's, and every measured-looking number is one of those."""

import hashlib
import re

import pytest

from benchmarks import data_examples, pretrain_speed, pretrain_table, quoted_numbers
from benchmarks.pretrain_speed import rates
from modeling_foundry.planning import find_gpu
from tests.conftest import REPOSITORY

PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((REPOSITORY / "docs").glob("*.md")))]
# The log says of itself that a figure without a receipt is a note taken by hand.
NOTES = ("docs/log.md",)
UNITS = r"tokens/s|tokens a second|[KMGT]i?B|ms|s|seconds|minutes|core-hours|hours|%|times|points|TFLOP/s|MFU|nats"
MEASURED = re.compile(rf"(?<![\w.^|+−-])\d[\d,.]*\s?[BMk]?\s?(?:{UNITS})(?![\w])")
# Page and words -> a number with a unit that is a setting, a definition, a forecast or another's figure.
DEFINED = {
    "README.md": (),
    "docs/data.md": (
        "up to the 64 KiB that hold", "895 GB compressed", "the compressed source 0.9 TB", "(5%) stops",
        "(1%) is held", "takes over 10 s, 1 GiB or 4 million",
    ),
    "docs/evaluate.md": ("| 25% |", "| 50% |", "look back 32 KiB", "95% intervals"),
    "docs/plan.md": (
        "report, 13.89 GiB, of", "0.9 GiB, and 0.7 GiB more", "for 720 hours at an MFU",
        "came out 3.4 times", "optimal N by 23%", "gives the 95% intervals", "3.5 and 4 times the width",
        "32 to 192 times their depth", "down to 0.1 nats", "costs 0.00015 nats more",
        "planner fits with 5% of", "the 36% is what",
    ),
    "docs/pretrain.md": (
        "30 seconds later", "up to 30 seconds before",
        "there waits 60 seconds for", "waits up to 60 seconds for them",
    ),
    "docs/publish.md": ("| 1 MiB |", "| 120 s |", "60 s at most", "| 20 s from", "waits 2 s before"),
    "docs/quickstart.md": (),
    "docs/terms.md": (),
}  # fmt: skip


# Measured before its script wrote the commit down.
WITHOUT_COMMIT = {"attention_backends"}
RECEIPTS = sorted((REPOSITORY / "benchmarks/receipts").glob("*.json"))


def blanked(pattern: str, text: str) -> str:
    """The text with what matches taken out, positions kept."""
    return re.sub(pattern, lambda found: " " * len(found.group()), text, flags=re.DOTALL | re.MULTILINE)


def prose_of(text: str) -> str:
    """Without code blocks, code words and what a script writes between markers."""
    return blanked(r"`[^`\n]*`", blanked(r"<!-- (\w+) -->.*?<!-- /\1 -->", blanked(r"^```.*?^```", text)))


@pytest.mark.parametrize("page", PAGES)
def test_the_receipts_numbers_stand_on_the_page(page):
    text = (REPOSITORY / page).read_text()
    assert quoted_numbers.filled(page, text) == text, "run benchmarks/quoted_numbers.py --write"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in NOTES])
def test_no_measured_number_without_a_receipt(page):
    text = (REPOSITORY / page).read_text()
    spans = [quote.pattern().search(text).span() for quote in quoted_numbers.quotes() if quote.page == page]
    for words in DEFINED[page]:
        found = re.search(r"\s+".join(map(re.escape, words.split())), text)
        assert found, f"{page} does not say: {words}"
        spans.append(found.span())
    for number in MEASURED.finditer(prose_of(text)):
        line = text.count("\n", 0, number.start()) + 1
        covered = any(start <= number.start() < end for start, end in spans)
        assert covered, (
            f"{page}:{line}: {number.group()}: tie it to a receipt in benchmarks/quoted_numbers.py"
        )


@pytest.mark.parametrize("path", RECEIPTS, ids=lambda path: path.stem)
def test_a_receipt_says_what_ran_where_and_names_no_folder_of_that_machine(path):
    content = quoted_numbers.receipt(path.stem)
    assert {"command", "commit", "machine", "versions"} <= set(content)
    assert bool(content["commit"]) != (path.stem in WITHOUT_COMMIT)
    assert not re.search(r"(?<![\w.~])/(?:home|root|work|opt|tmp|mnt|usr)/", path.read_text())
    assert any(path.stem in page.read_text() for page in (REPOSITORY / "docs").glob("*.md")), "quoted nowhere"


def test_a_number_changed_by_hand_is_noticed():
    text = (REPOSITORY / "README.md").read_text()
    for quote in quoted_numbers.quotes():
        if quote.page == "README.md":
            start, end = quote.pattern().search(text).span(1)
            assert quoted_numbers.filled("README.md", f"{text[:start]}7{text[end:]}") == text
    with pytest.raises(SystemExit, match="does not hold"):
        quoted_numbers.filled("README.md", text.replace("as shipped, at", "as it is, at"))


def test_the_printed_examples_of_the_data_page_are_those_of_their_receipt():
    """``tests/test_docs.py`` runs the commands; with the receipt's Python it compares what they print."""
    page, examples = (
        (REPOSITORY / "docs/data.md").read_text(),
        quoted_numbers.receipt("data_examples")["examples"],
    )
    assert [example["first_line"] for example in examples] == list(data_examples.EXAMPLES)
    for example in examples:
        shown = data_examples.block_pattern(example["first_line"]).search(page)[2]
        assert hashlib.sha256(shown.encode()).hexdigest() == example["output_sha256"], example["command"]


def test_the_planner_s_h200_is_the_one_measured():
    shipped = pretrain_table.measured_row(quoted_numbers.receipt("pretrain_speed"), pretrain_table.SHIPPED)
    assert find_gpu("H200").typical_mfu == pytest.approx(rates(shipped)[1], abs=0.01), (
        "planning/formulas/hardware.py: H200"
    )


@pytest.mark.parametrize(
    ("value", "at_most", "row"),
    [
        (0.62, False, "| MFU | ≥ 60.0% | 62.0% | reached |"),
        (0.60, False, "| MFU | ≥ 60.0% | 60.0% | reached |"),
        (0.59999, False, "| MFU | ≥ 60.0% | 60.0% | **missed by 0.1%** |"),
        (0.58, False, "| MFU | ≥ 60.0% | 58.0% | **missed by 3.4%** |"),
        (0.62, True, "| MFU | ≤ 60.0% | 62.0% | **missed by 3.4%** |"),
        (0.5, True, "| MFU | ≤ 60.0% | 50.0% | reached |"),
        (None, False, "| MFU | ≥ 60.0% | not measured | |"),
    ],
)
def test_a_goal_is_reached_missed_or_not_measured(value, at_most, row):
    assert pretrain_table.goal("MFU", value, 0.6, "{:.1%}", at_most) == row


def test_float8_is_judged_by_both_losses_and_by_the_worse():
    bf16 = {"losses": [9.0] * 9 + [4.0] * 50, "held_out_loss": 5.0}
    fp8 = {"losses": [9.0] * 9 + [4.04] * 50, "held_out_loss": 4.9}
    parity = {"rows": {"bf16": bf16, "fp8": fp8}}
    assert pretrain_table.loss_changes(parity, "fp8") == pytest.approx((0.01, -0.02))
    shipped = {
        "micro_batch": 1,
        "accumulation": 1,
        "sequence_length": 1,
        "step_seconds": [1.0],
        "gpu": "H200",
    }
    assert "| 2.00% | **missed by 300.0%** |" in "".join(
        pretrain_table.goal_rows({pretrain_table.SHIPPED: shipped}, {"start_seconds": 20.0}, parity, {})
    )


def test_a_quoted_row_that_failed_is_named():
    receipt = {"command": "python a.py", "rows": {"stock, eager": {"failure": "out of memory"}}}
    with pytest.raises(SystemExit, match=r"python a.py: stock, eager: out of memory"):
        pretrain_table.measured_row(receipt, "stock, eager")
    with pytest.raises(SystemExit, match=r"python a.py: bf16: not there"):
        pretrain_table.loss_changes(receipt, "bf16")


def test_a_receipt_with_profiles_and_moments_becomes_tables():
    profile = {
        "micro_batches": 2, "busy_milliseconds": 90.0, "span_milliseconds": 100.0,
        "groups": {"matrix products": {"milliseconds": 70.0}, "attention": {"milliseconds": 20.0}},
    }  # fmt: skip
    assert pretrain_table.kernel_rows({pretrain_table.SHIPPED: {"profile": profile}})[2:] == [
        "| matrix products | 35.0 (70.0%) |", "| attention | 10.0 (20.0%) |", "| no kernel | 5.0 (10.0%) |",
    ]  # fmt: skip
    cold = {"seconds_since_launch": {"imports": 20.0}, "start_seconds": 47.0}
    starts = {pretrain_table.COLD: cold, pretrain_table.WARM: cold | {"start_seconds": 27.94}}
    assert pretrain_table.start_rows(starts)[2:] == [
        "| imports | 20.0 | 20.0 |",
        "| first step | 47.0 | 27.9 |",
    ]
    assert "no receipt yet" in pretrain_table.kernel_rows({pretrain_table.SHIPPED: {}})[0]


def test_other_shapes_have_a_table_of_their_own():
    names = ("pretrain_speed", "pretrain_start", "float8_parity")
    speed, start, parity = (quoted_numbers.receipt(name) for name in names)
    row = speed["rows"][pretrain_table.SHIPPED]
    shapes = speed | {"rows": {"DDP": row, "FSDP2": {"failure": "too slow"}}}
    text = pretrain_table.speed_section(speed, shapes, start, parity)
    assert "receipts/pretrain_shapes.json" in text
    assert "| DDP | 16 × 16 × 2,048 |" in text
    assert "- FSDP2: failed, too slow" in text
    assert text.count("Such a machine, the same versions: ") == 2
    other = shapes | {"gpu_state": shapes["gpu_state"].replace("H200", "H100")}
    assert "One NVIDIA H100 (" in pretrain_table.speed_section(speed, other, start, parity)


def test_several_gpus_stand_beside_one():
    names = ("pretrain_speed", "pretrain_shapes", "pretrain_start", "float8_parity")
    speed, shapes, start, parity = (quoted_numbers.receipt(name) for name in names)
    assert "| ≥ 98.0% | not measured | |" in pretrain_table.speed_section(speed, shapes, start, parity)
    one = speed["rows"][pretrain_table.SHIPPED]
    four = one | {"num_gpus": 4, "step_seconds": [seconds / 0.97 for seconds in one["step_seconds"]]}
    scaling = speed | {"rows": {pretrain_table.ONE_GPU: one, pretrain_table.FOUR_GPUS: four}}
    text = pretrain_table.speed_section(speed, shapes, start, parity, scaling)
    assert "| ≥ 98.0% | 97.0% | **missed by 1.1%** |" in text
    assert re.search(r"\| ZeRO-1 on 4 GPUs \| 16 × 16 × 2,048 \| [\d,]+ \| .* \| 97\.0% \|", text)


@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8])
def test_the_scaling_table_has_the_rows_that_the_machine_has_gpus_for(gpus):
    counts = [pretrain_speed.VARIANTS[name].num_gpus for name in pretrain_speed.rows_for("scaling", gpus)]
    assert counts == [number for number in (1, 2, 4, 8, 2, 2) if number <= gpus]  # ZeRO-1, then DDP and FSDP2


@pytest.mark.parametrize("page", PAGES)
def test_a_percent_sign_stands_at_its_number(page):
    spaced = re.findall(r".{0,30}[\d)][\s\u00a0]%.{0,10}", (REPOSITORY / page).read_text())
    assert not spaced
