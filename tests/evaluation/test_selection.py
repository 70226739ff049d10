"""Settings and the choice of items."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry import settings
from modeling_foundry.evaluation.selection import draw, draw_documents, read_items
from modeling_foundry.evaluation.settings import EvaluationSettings
from modeling_foundry.settings import FoundryError


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 9))
def test_a_larger_limit_keeps_the_items_of_a_smaller_one(num_items, limit, seed):
    smaller, larger = draw(num_items, limit, seed), draw(num_items, limit + 5, seed)
    assert larger[: len(smaller)] == smaller
    assert len(set(larger)) == min(num_items, limit + 5)


@given(st.lists(st.integers(0, 900), min_size=3, max_size=30), st.integers(0, 5))
def test_documents_stay_whole_and_within_the_bytes(sizes, seed):
    usable = sorted(size for size in sizes if size > 0)
    if len(usable) < 2:
        return
    max_bytes = usable[-1] + usable[-2]
    chosen = draw_documents(sizes, max_bytes, seed)
    assert sum(sizes[index] for index in chosen) <= max_bytes
    assert all(sizes[index] > 0 for index in chosen)
    assert chosen == sorted(set(chosen))


def test_too_few_bytes_are_refused():
    with pytest.raises(FoundryError, match="max_text_bytes: 10 bytes hold fewer than two"):
        draw_documents([100, 200, 8], 10, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "[base]"], "models: expected name=folder"),
        (["--models", "[a=x, a=y]"], "models: a: given twice"),
        (["--models", "[a=x]", "--untrained", "[b]"], "untrained: b: no such model"),
        (["--models", "[a=x]", "--batch_size=0"], "batch_size: expected at least 1"),
        (["--models", "[a=x]", '--limits={"t": "many"}'], "limits: t: expected a whole number"),
        (["--models", "[a=x]", "--task=arc_easy"], "task: unknown key"),
        ([], "models: missing"),
    ],
)
def test_bad_settings_are_one_line(arguments, message):
    with pytest.raises(settings.SettingsError, match=message) as error:
        settings.parse(EvaluationSettings, argv=arguments)
    assert "\n" not in str(error.value)


def test_an_untrained_model_gets_fewer_tasks():
    chosen = EvaluationSettings(models=["random=a", "base=b"], untrained_tasks=["stdlib_bits_per_byte"])
    assert chosen.tasks_of("random") == ["stdlib_bits_per_byte"]
    assert len(chosen.tasks_of("base")) == 4


def test_missing_and_torn_data_are_one_line(tmp_path):
    with pytest.raises(FoundryError, match="run `make data` first"):
        read_items(tmp_path, "heldout.jsonl")
    (tmp_path / "heldout.jsonl").write_text('{"text": "a"}\n{"tex')
    with pytest.raises(FoundryError, match=r"heldout\.jsonl:2: not a JSON object"):
        read_items(tmp_path, "heldout.jsonl")


def test_a_text_with_unicodes_own_line_ends_is_one_line(tmp_path):
    texts = ["a\u2028b\x85c", "d"]
    rows = [json.dumps({"module": "x", "text": text}, ensure_ascii=False) + "\n" for text in texts]
    (tmp_path / "heldout.jsonl").write_text("".join(rows), encoding="utf-8")
    assert [item["text"] for item in read_items(tmp_path, "heldout.jsonl")] == texts
