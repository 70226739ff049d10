"""``make test-fast`` leaves out what is marked slow, and no room with it."""

import ast

import pytest

from tests.conftest import REPOSITORY

ROOMS = sorted(path.parent.name for path in (REPOSITORY / "modeling_foundry").glob("*/__init__.py"))


def marks_slow(node: ast.AST) -> bool:
    return "pytest.mark.slow" in ast.unparse(node)


def fast_tests(path) -> list[str]:
    """Names of the tests of a file that carry no mark, themselves or by their file."""
    body = ast.parse(path.read_text()).body
    if any(isinstance(node, ast.Assign) and marks_slow(node) for node in body):
        return []
    tests = [node for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return [test.name for test in tests if not any(map(marks_slow, test.decorator_list))]


@pytest.mark.parametrize("room", [*ROOMS, "app"])
def test_every_room_has_fast_tests(room):
    files = sorted((REPOSITORY / "tests" / room).rglob("test_*.py"))
    assert sum(len(fast_tests(path)) for path in files) >= 10, room
