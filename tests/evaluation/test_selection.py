"""Settings and the choice of items."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry import settings
from modeling_foundry.evaluation.items.selection import draw, draw_documents
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
    with pytest.raises(FoundryError, match="max_text_bytes: 10 bytes hold 1 of 3 held-out documents"):
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
