"""Private names of libraries: each is where it was read, and none is used that the list does not hold."""

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import platform
import sys

import pytest

from modeling_foundry.private_names import PRIVATE_NAMES, READ_IN
from tests.conftest import REPOSITORY

SOURCES = sorted((REPOSITORY / "modeling_foundry").rglob("*.py"))
BUILTIN_OWNERS = ("sys", "atexit", "os", "importlib.machinery.ModuleSpec")


def installed(library):
    return platform.python_version() if library == "python" else importlib.metadata.version(library)


def resolve(dotted):
    """The module or class of a dotted path."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(dotted)


@pytest.mark.parametrize("entry", PRIVATE_NAMES, ids=lambda entry: f"{entry.owner}.{entry.name}")
def test_it_is_where_it_was_read(entry):
    if entry.library == "deepspeed" and not sys.platform.startswith("linux"):
        pytest.skip("DeepSpeed is installed on Linux alone")
    moved = (
        f"{entry.library} {installed(entry.library)} has no {entry.owner}.{entry.name}; it was read in "
        + (READ_IN[entry.library])
    )
    owner = resolve(entry.owner)
    if hasattr(owner, entry.name):
        return
    assert entry.is_set_on_instances, moved
    if entry.owner in BUILTIN_OWNERS:  # set by the import system on every spec
        assert hasattr(importlib.util.find_spec("json"), entry.name), moved
        return
    sources = [inspect.getsource(each) for each in owner.__mro__[:-1] if each.__module__ != "builtins"]
    assert any(f"self.{entry.name}" in source or f"model.{entry.name}" in source for source in sources), moved


def names_of_ours():
    """Private names that the package itself defines."""
    names = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                names |= {node.attr} if isinstance(node.ctx, ast.Store) else set()
    return names


def touched(path):
    """Private names that a file reads from, or writes to, something."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            yield from (each.value for each in node.args[1:2] if isinstance(each, ast.Constant))


def test_no_other_private_name_is_touched():
    listed, ours = {entry.name for entry in PRIVATE_NAMES}, names_of_ours()
    for path in SOURCES:
        used = {name for name in touched(path) if name.startswith("_") and not name.startswith("__")}
        unlisted = sorted(used - listed - ours)
        assert not unlisted, f"{path}: {unlisted}: add it to private_names.py, with the reason"


def test_every_private_method_that_is_overridden_stands_in_the_list():
    from modeling_foundry.alignment.pipeline import FoundryDPOTrainer, FoundrySFTTrainer
    from modeling_foundry.pretraining.pipeline import PretrainTrainer

    listed = {entry.name for entry in PRIVATE_NAMES}
    for kind in (PretrainTrainer, FoundrySFTTrainer, FoundryDPOTrainer):
        ours = [each for each in kind.__mro__ if each.__module__.startswith("modeling_foundry")]
        theirs = [each for each in kind.__mro__ if each not in ours]
        for name in {name for each in ours for name in vars(each)}:
            is_private = name.startswith("_") and not name.startswith("__")
            if is_private and any(name in vars(each) for each in theirs):
                assert name in listed, f"{kind.__name__} overrides {name}"
