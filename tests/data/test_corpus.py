"""The standard library as a corpus: what is in it, and on which side it stands."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.data.preparation.standard_library import (
    GENERATED,
    SHIPPED_APART,
    Module,
    corpus_sha256,
    family_of,
    is_held_out,
    read_standard_library,
    split_modules,
)
from modeling_foundry.settings import FoundryError


@pytest.fixture(scope="module")
def modules():
    return read_standard_library()[0]


def write_files(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("json.decoder", "json"), ("test.test_json.test_dump", "json"), ("test.test_tarfile", "tarfile"),
        ("_strptime", "strptime"), ("_pyio", "io"), ("_pydecimal", "decimal"), ("__future__", "future"),
        ("pydoc", "pydoc"), ("py_compile", "py_compile"), ("test.test_urllib2", "urllib"),
        ("test.test_urlparse", "urllib"), ("test.datetimetester", "datetime"), ("test.test_grammar", "grammar"),
    ],
)  # fmt: skip
def test_what_belongs_together_has_one_family(name, family):
    assert family_of(name) == family


def test_the_split_is_a_pure_function_of_the_family():
    # Fixed by the salt: these literals change only when the split does, and every published number with it.
    held_out = {"tarfile", "ipaddress", "logging", "urllib", "shlex", "tomllib", "io", "smtplib", "wsgiref"}
    assert all(is_held_out(family, 0.1) for family in held_out)
    assert not any(is_held_out(family, 0.1) for family in ("asyncio", "json", "email", "collections"))


@given(st.text(min_size=1), st.floats(0.01, 0.5), st.floats(0.0, 0.5))
def test_a_larger_fraction_only_adds_to_what_is_held_out(family, fraction, more):
    assert is_held_out(family, fraction) <= is_held_out(family, fraction + more)


def test_no_family_is_on_both_sides(modules):
    train, held_out = split_modules(modules, 0.1)
    assert {module.name for module in train} | {module.name for module in held_out} == {
        m.name for m in modules
    }
    assert not {module.family for module in train} & {module.family for module in held_out}
    share = sum(len(m.text) for m in held_out) / sum(len(m.text) for m in modules)
    assert 0.03 < share < 0.2


def test_nothing_is_there_that_distributors_ship_apart(modules):
    names = {module.name for module in modules}
    assert len(names) == len(modules)
    assert len({module.text for module in modules}) == len(modules)
    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)
    for absent in SHIPPED_APART | GENERATED | {"site-packages"}:
        assert not [name for name in names if name == absent or name.startswith(f"{absent}.")]
    assert not [name for name in names if {"test", "tests"} & set(name.split("."))]


def test_a_library_of_ones_own(tmp_path):
    write_files(
        tmp_path,
        {
            "json/__init__.py": "import re\n",
            "json/decoder.py": "# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"),
            "json/copy.py": "import re\n",
            "json/tests/test_json.py": "tested = True\n",
            "abc.py": b"\xff\xfe not text\n",
            "ast.py": " \n",
            "site-packages/numpy.py": "installed = True\n",
            "ctypes/macholib/dyld.py": "apart = True\n",
            "ctypes/util.py": "together = True\n",
            "own_script.py": "not the library's = True\n",
            "test/test_json.py": "tests = True\n",
            "test/support/data.py": "support = True\n",
        },
    )
    modules, left_out = read_standard_library(root=tmp_path)
    assert [module.name for module in modules] == ["ctypes.util", "json", "json.decoder"]
    assert modules[2].text.splitlines()[1] == "name = 'é'", "PEP 263"
    assert left_out == {"not_decodable": 1, "duplicate": 1, "empty": 1}
    with_tests = {module.name for module in read_standard_library(include_tests=True, root=tmp_path)[0]}
    assert with_tests - {m.name for m in modules} == {
        "json.tests.test_json",
        "test.test_json",
        "test.support.data",
    }


def test_no_source_is_said(tmp_path):
    with pytest.raises(FoundryError, match="no Python sources here"):
        read_standard_library(root=tmp_path)


def test_a_side_may_not_be_empty():
    with pytest.raises(
        FoundryError, match=r"held_out_fraction: 0\.1 leaves 1 modules to train on and 0 held out"
    ):
        split_modules([Module("asyncio", "x = 1")], 0.1)


def test_the_hash_tells_names_from_texts():
    assert corpus_sha256([Module("a", "bc")]) != corpus_sha256([Module("ab", "c")])
    assert corpus_sha256([Module("a", "b")]) == corpus_sha256([Module("a", "b")])
