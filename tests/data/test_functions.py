"""Samples from functions: real, public, in prose; pairs that cannot be told by their answers alone."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.data.preparation.docstring_samples import (
    DocumentedFunction,
    conversation,
    documented_functions,
    first_sentence,
    preference_pairs,
)
from modeling_foundry.data.preparation.standard_library import (
    Module,
    read_standard_library,
    split_modules,
)

SOURCE = (
    'class Tree:\n    def depth(self, node=None):\n        """Return the depth of a node."""\n'
    '    def _hidden(self):\n        """Return what is hidden here."""\n'
    'def undocumented(): pass\nasync def wait(n: int) -> None:\n    """Wait for n seconds."""\n'
)


@pytest.fixture(scope="module")
def sides():
    train, held_out = split_modules(read_standard_library()[0], 0.1)
    functions = documented_functions(train)
    return functions, documented_functions(held_out, known=functions)


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return the sum. And more.", "Return the sum."),
        ("Return\n    the sum of\n    both\n\nDetails.", "Return the sum of both."),
        ("Return the name, e.g. 'Linux' or 'Java'. Not more.", "Return the name, e.g. 'Linux' or 'Java'."),
        (
            "Given the path to a .pyc. file, find its source.",
            "Given the path to a .pyc. file, find its source.",
        ),
        ("S.append(value) -- append value to the end", "append value to the end."),
        ("Read up to `n` bytes, ``ready`` or *not*.", "Read up to n bytes, ready or not."),
        ("Compare a*b and c*d here.", "Compare a*b and c*d here."),
        ("accept() -> (socket object, address info)", None),
        ("FWS = one two three", None),
        ("This method is deprecated now.", None),
        (">>> add(1, 2) is three words", None),
        ("Two words", None),
        ("Set it to the following:", None),
        ("word " * 40, None),
        ("Return the name (or", None),
        ("Gibt die Größe zurück hier", None),
        (None, None),
    ],
)
def test_the_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


def test_functions_are_real_and_public():
    modules = [Module("tree", SOURCE), Module("copy", SOURCE), Module("broken", "def (")]
    found = documented_functions(modules)
    assert [(f.module, f.name, f.signature, f.summary) for f in found] == [
        ("tree", "Tree.depth", "class Tree:\n    def depth(self, node=None):", "Return the depth of a node."),
        ("tree", "wait", "async def wait(n: int):", "Wait for n seconds."),
    ]
    assert documented_functions(modules, known=found) == []
    assert conversation(found[1])["messages"] == [
        {"role": "user", "content": "Summarize in one sentence.\nasync def wait(n: int):"},
        {"role": "assistant", "content": "Wait for n seconds."},
    ]


@pytest.mark.slow
def test_the_library_gives_enough_and_no_answer_twice(sides):
    train, held_out = sides
    assert len(train) > 1500
    assert len(held_out) > 250
    for what in ("question", "summary"):
        texts = [getattr(function, what) for function in [*train, *held_out]]
        assert len(set(texts)) == len(texts), f"a {what} stands on both sides, or twice"


def test_rejected_answers_are_real_and_wrong(sides):
    for functions in sides:
        own = {(f.module, f.name, f.question): f.summary for f in functions}
        pairs = preference_pairs(functions)
        assert len(pairs) == len(functions)
        for pair in pairs:
            assert (
                pair["chosen"][0]["content"]
                == own[pair["module"], pair["function"], pair["prompt"][0]["content"]]
            )
            assert pair["rejected"][0]["content"] != pair["chosen"][0]["content"]
        chosen, rejected = ({pair[side][0]["content"] for pair in pairs} for side in ("chosen", "rejected"))
        assert rejected == chosen == set(own.values()), "each answer is chosen once and rejected once"
        hard = Counter(pair["difficulty"] for pair in pairs)
        assert 0.1 < hard["same module"] / len(pairs) < 0.3
        assert set(hard) == {"same module", "like length"}


names = st.text("abcdefgh", min_size=1, max_size=3)


@given(st.lists(st.tuples(names, names), min_size=2, max_size=60, unique=True))
def test_pairs_of_any_functions(names_of_functions):
    functions = [
        DocumentedFunction(module, name, f"def {name}():", f"Summary {i} " + "x" * (i % 7))
        for i, (module, name) in enumerate(names_of_functions)
    ]
    pairs = preference_pairs(functions)
    home = {function.summary: function.module for function in functions}
    chosen, rejected = (
        Counter(pair[side][0]["content"] for pair in pairs) for side in ("chosen", "rejected")
    )
    assert chosen == rejected
    assert len(pairs) >= len(functions) - 1, "at most one has no partner"
    for pair in pairs:
        assert pair["rejected"] != pair["chosen"]
        if pair["difficulty"] == "same module":
            assert home[pair["rejected"][0]["content"]] == pair["module"]
    assert pairs == preference_pairs(functions)
