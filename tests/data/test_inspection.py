"""What a person sees of packed tokens."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.data.inspection.pictures import DOCUMENT_STYLES, coloured_documents
from modeling_foundry.data.inspection.settings import InspectSettings

END = 0
LETTERS = SimpleNamespace(decode=lambda ids, skip_special_tokens: "".join(map(chr, ids)).replace("\0", "¶"))


def styled(text):
    return [(text.plain[span.start : span.end], span.style) for span in text.spans]


def test_the_colour_changes_behind_each_end_of_a_document():
    text = coloured_documents([*b"ab", END, *b"c", END, END, *b"d"], END, LETTERS)
    first, second, third, fourth = DOCUMENT_STYLES
    assert styled(text) == [("ab¶", first), ("c¶", second), ("¶", third), ("d", fourth)]


@given(st.lists(st.integers(0, 0xD7FF).filter(lambda number: number != ord("\\")), max_size=40))
def test_no_token_is_left_out_and_no_terminal_is_steered(ids):
    shown = coloured_documents(ids, END, LETTERS).plain
    assert all(character.isprintable() or character in "\n\t" for character in shown)
    assert shown.encode("latin-1", "backslashreplace").decode("unicode_escape") == LETTERS.decode(ids, False)


def test_escapes_of_a_terminal_show_as_text():
    text = coloured_documents(list(b"a\x1b[2Jb\x07\n\tc"), END, LETTERS)
    assert text.plain == "a\\x1b[2Jb\\x07\n\tc"


def test_other_corpora_without_a_picture_are_refused():
    """They would not even be opened: a corpus that is not there would go unsaid."""
    with pytest.raises(ValueError, match="^compare: .* give plot"):
        InspectSettings(compare=["nowhere"])
    assert InspectSettings(compare=["nowhere"], plot="pictures").compare == ["nowhere"]
