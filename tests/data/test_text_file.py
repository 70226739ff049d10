"""Any plain-text file: what of it is held out, and what is said when it cannot be used."""

import gzip
import lzma
from functools import partial

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.data.preparation.text_file import read_text_file
from modeling_foundry.settings import FoundryError

packed = partial(gzip.compress, mtime=0)  # or the ids of tests hold the time, other ones in each worker


def write(folder, content):
    path = folder / "input.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


lines = st.lists(st.text("abc \n", max_size=12), min_size=1, max_size=30)


@given(lines, st.floats(0.01, 0.9))
def test_it_is_cut_in_two(tmp_path_factory, content, fraction):
    text = "\n".join(content)
    path = write(tmp_path_factory.mktemp("text"), text)
    try:
        (train,), (held_out,) = read_text_file(path, fraction)
    except FoundryError as error:
        assert str(path) in str(error)
        return
    assert train.text + held_out.text == text
    assert train.text.strip()
    assert held_out.text.strip()
    assert 0.5 * fraction * len(text) - 2 <= len(held_out.text) <= 1.5 * fraction * len(text) + 1


def test_the_end_is_held_out(tmp_path):
    text = "".join(f"line {i}\n" for i in range(1000))
    (train,), (held_out,) = read_text_file(write(tmp_path, text), 0.1)
    assert 0.09 < len(held_out.text) / len(text) < 0.12
    assert held_out.text.startswith("line ")
    assert train.name == held_out.name == "input"


@pytest.mark.parametrize(
    ("text", "end"), [("short line\n" * 1000, "\n"), ("word " * 1000, " "), ("一" * 1000, "一")]
)
def test_it_is_cut_at_a_line_a_space_or_anywhere(tmp_path, text, end):
    (train,), (held_out,) = read_text_file(write(tmp_path, text), 0.1)
    assert train.text.endswith(end)
    assert 0.05 <= len(held_out.text) / len(text) <= 0.15


def test_a_byte_order_mark_and_windows_lines_are_not_text(tmp_path):
    (train,), (held_out,) = read_text_file(write(tmp_path, b"\xef\xbb\xbfone\r\ntwo\r\n"), 0.5)
    assert train.text + held_out.text == "one\ntwo\n"


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_packed_text_is_read(tmp_path, pack):
    """It was "byte 1 is not UTF-8"."""
    (train,), (held_out,) = read_text_file(write(tmp_path, pack(b"\xef\xbb\xbfone\r\ntwo\n")), 0.5)
    assert train.text + held_out.text == "one\ntwo\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text\n".encode("utf-16"), "is UTF-16 text, expected UTF-8 text; convert"),
        ("text\n".encode("utf-16-le"), "is UTF-16 text"),
        ("text\n".encode("utf-16-be"), "is UTF-16 text"),
        ("text\n".encode("utf-32-be"), "is UTF-32 text"),
        (packed("text\n".encode("utf-16")), "is UTF-16 text"),
        (packed(packed(b"text\n" * 9)), "is gzip data"),
        (packed(b"text\n" * 999)[:-9], r"corrupt gzip data \(ends inside a frame\)"),
        (lzma.compress(b"text\n" * 9), "is xz data"),
        (b"PAR1\x15\x04rest", "is a Parquet file"),
        (b"PK\x03\x04rest", "is a zip archive"),
        ("Grüße\n".encode("latin-1") * 9, "byte 2 is not UTF-8; convert"),
        (b"", "empty; expected some lines of text"),
        (b" \n\n", "empty; expected some lines of text"),
        (b"a", "too short to cut"),
        (b"\xff\xfd\n" * 50, "byte 0 is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(tmp_path, content, message):
    with pytest.raises(FoundryError, match=message) as error:
        read_text_file(write(tmp_path, content), 0.1)
    assert "\n" not in str(error.value)


def test_no_file_is_said(tmp_path):
    with pytest.raises(FoundryError, match="cannot read the text file"):
        read_text_file(tmp_path / "absent.txt", 0.1)
