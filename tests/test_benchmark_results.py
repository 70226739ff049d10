"""A benchmark that is run changes no receipt; asked for, a whole result replaces one and fills the pages with it."""

import json
import re
import shutil

import pytest

from benchmarks import quoted_numbers, results
from modeling_foundry.settings import FoundryError
from tests.conftest import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
# They measure nothing.
OTHERS = {"results.py", "run_all.py", "quoted_numbers.py", "pretrain_table.py"}
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if path.name not in OTHERS)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of the receipts and of the pages that quote them."""
    root = tmp_path / "checkout"
    for name in ("docs", "benchmarks/receipts"):
        shutil.copytree(REPOSITORY / name, root / name)
    shutil.copy(REPOSITORY / "README.md", root)
    (root / "recipes").symlink_to(REPOSITORY / "recipes")
    for module in (quoted_numbers, results):
        monkeypatch.setattr(module, "ROOT", root)
        monkeypatch.setattr(module, "RECEIPTS", root / "benchmarks" / "receipts")
    monkeypatch.setattr(results, "OWN_RESULTS", root / "runs" / "benchmarks")
    monkeypatch.delenv("OUT", raising=False)
    return root


def content_of(root):
    """All files but the user's own results."""
    files = (
        path for folder in ("docs", "benchmarks") for path in (root / folder).rglob("*") if path.is_file()
    )
    return {path: path.read_bytes() for path in [*files, root / "README.md"]}


def receipt(name):
    return json.loads((REPOSITORY / "benchmarks" / "receipts" / f"{name}.json").read_text())


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_benchmark_writes_by_the_one_writer(script):
    """``tokenization_speed.py`` without bpe-qwen replaced the receipt in place, and 16 tests of the pages failed."""
    source = (BENCHMARKS / script).read_text()
    assert "results.finish(" in source
    assert not re.search(r"RECEIPT\w*[^\n]*write|write\w*\([^\n]*RECEIPT", source)
    assert "OUT" not in re.findall(r"environ\W+(?:get\W+)?(\w+)", source)
    asked = re.findall(
        r"results\.finish\([^\n]*?(?:settings\.receipt|arguments\.receipt|receipt=True)\)", source
    )
    assert len(asked) == source.count("results.finish(") == 1
    if "receipt=True" in asked[0]:  # these change pages, and only when told to
        assert '"--write", action="store_true"' in source


@pytest.mark.parametrize("name", sorted(path.stem for path in (BENCHMARKS / "receipts").glob("*.json")))
def test_ones_own_run_goes_to_the_runs(checkout, name, capsys):
    before = content_of(checkout)
    results.finish(name, {"rows": {}}, receipt=False)
    assert content_of(checkout) == before
    own = checkout / "runs" / "benchmarks" / f"{name}.json"
    assert json.loads(own.read_text()) == {"rows": {}}
    assert (
        f"result: {own} (python benchmarks/results.py {own} makes it the receipt" in capsys.readouterr().out
    )


def test_a_lent_machine_says_where(checkout, tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    assert results.save_result("optimizers", {}) == tmp_path / "out" / "optimizers.json"


def test_a_whole_result_replaces_the_receipt_and_the_pages(checkout):
    measured = receipt("tokenization_speed")
    for rounds in measured["variants"].values():
        rounds.append(rounds[0])
    measured["proof_seconds"] = 12.5
    corpus = receipt("corpus_tokenization")
    corpus["median_megabytes_per_second"] = 34.5678
    results.finish("tokenization_speed", measured, receipt=True)
    results.finish("corpus_tokenization", corpus, receipt=True)
    assert json.loads((checkout / "benchmarks/receipts/tokenization_speed.json").read_text()) == measured
    page = (checkout / "docs/data.md").read_text()
    assert re.search(r"took\s+34\.6 MB of text a second", page)
    assert quoted_numbers.filled("docs/data.md", page) == page


PARTIAL = [
    ("tokenization_speed", lambda it: it["variants"].pop("bpe-qwen"), r"variants\.bpe-qwen is missing"),
    ("tokenization_speed", lambda it: it["variants"]["datatrove"].pop(), r"variants\.datatrove has \d rows, the"),
    ("pretrain_speed", lambda it: it["rows"].pop("ours, fp8"), "rows.ours, fp8 is missing"),
    (
        "pretrain_speed",
        lambda it: it["rows"].update({"ours, fp8": {"failure": "out of memory"}}),
        r"rows\.ours, fp8: failed \(out of memory\)",
    ),
    ("optimizers", lambda it: it["rows"].pop(), "rows has 3 rows|rows has"),
    ("plan_memory", lambda it: it.pop("mean_error"), "mean_error is missing"),
    ("data_loading", lambda it: it.update(samples={}), r"samples\.\w+ is missing and \d more"),
    ("quickstart", lambda it: it["scores"].clear(), r"scores\..* is missing"),
    ("attention_backends", lambda it: it.clear(), "command is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "said"), PARTIAL)
def test_what_is_not_whole_replaces_nothing(checkout, name, damage, said):
    before, measured = content_of(checkout), receipt(name)
    damage(measured)
    with pytest.raises(FoundryError, match=rf"benchmarks/{name}\.json: not whole: (?:{said})") as error:
        results.finish(name, measured, receipt=True)
    assert f"{name}.json stays" in str(error.value)
    assert content_of(checkout) == before
    assert (checkout / "runs" / "benchmarks" / f"{name}.json").is_file(), "what was measured is not lost"


def test_a_result_no_page_can_be_filled_from_changes_nothing(checkout):
    before, measured = content_of(checkout), receipt("corpus_tokenization")
    measured["median_megabytes_per_second"] = "fast"
    with pytest.raises(FoundryError, match=r"corpus_tokenization\.json: stays; a page cannot be filled"):
        results.finish("corpus_tokenization", measured, receipt=True)
    assert content_of(checkout) == before
    (checkout / "runs/benchmarks/corpus_tokenization.json").write_text("{")
    with pytest.raises(FoundryError, match="not a result of a benchmark"):
        results.replace_receipt(checkout / "runs/benchmarks/corpus_tokenization.json")
    assert content_of(checkout) == before
