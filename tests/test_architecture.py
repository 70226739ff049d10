"""The arrows of the house: which room may import which (docs: CONTRIBUTING.md)."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "modeling_foundry"
# Room -> rooms it may import.  Files at the top of the package are open to every room.
MAY_IMPORT = {
    "model": set(),
    "planning": set(),
    "data": set(),
    "training": {"model", "planning", "data"},
    "pretraining": {"training", "model", "planning", "data"},
    "alignment": {"training", "model", "data"},
    "evaluation": {"data", "planning", "model"},
    "publishing": {"evaluation", "planning", "model"},
}
ROOMS = tuple(MAY_IMPORT)
FILES_OF_A_SUB_ROOM = range(3, 15)
SOURCES = sorted(PACKAGE.rglob("*.py"))
ALL_PYTHON = [
    path
    for folder in ("modeling_foundry", "recipes", "app", "eval_tasks", "benchmarks", "tests")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
]


def imported_modules(path: Path) -> set[str]:
    """Absolute names of everything a file imports, relative imports resolved."""
    package = list(path.relative_to(REPOSITORY).with_suffix("").parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            depth = len(package) - node.level
            base = (
                ".".join([*package[:depth], *(node.module or "").split(".")]) if node.level else node.module
            )
            base = base.rstrip(".")
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def room_of(module: str) -> str | None:
    match = re.match(r"modeling_foundry\.(\w+)", module)
    return match.group(1) if match and match.group(1) in ROOMS else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_only_what_they_may(path):
    parts = path.relative_to(PACKAGE).parts
    room = parts[0] if parts[0] in ROOMS else None
    used = {room_of(module) for module in imported_modules(path)} - {None, room}
    allowed = MAY_IMPORT[room] if room else {"model"}  # the package itself registers the model
    assert used <= allowed, f"{path}: imports {sorted(used - allowed)}"


def is_there(module: str) -> bool:
    """Whether a module of ours exists, or the module that holds this name."""
    path = REPOSITORY.joinpath(*module.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize("path", ALL_PYTHON, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_module_of_ours_that_is_imported_is_there(path):
    """Imports inside functions too, and those of the programs that tests hold as text: mypy does not see them."""
    written = re.findall(r"^\s*(?:from|import) (modeling_foundry[\w.]*)", path.read_text(), re.MULTILINE)
    imported = {name for name in imported_modules(path) if name.startswith("modeling_foundry")}
    missing = {name for name in imported if not is_there(name) and not is_there(name.rpartition(".")[0])}
    missing |= {name for name in written if not is_there(name)}
    assert not missing, f"{path}: {sorted(missing)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_in_the_package_imports_recipes_or_the_app(path):
    tops = {module.split(".")[0] for module in imported_modules(path)}
    assert not tops & {"recipes", "app", "tests", "benchmarks", "eval_tasks"}


def place_of(module: str) -> str | None:
    """The sub-room of a module, or the module itself where it lies at the top of a room: ``data.chat``."""
    parts = module.split(".")
    path = REPOSITORY.joinpath(*parts)
    if not path.is_dir() and not path.with_suffix(".py").is_file():
        parts = parts[:-1]  # a name inside a module
    if len(parts) < 3 or parts[1] not in ROOMS:
        return None
    return ".".join(parts[1:3])


def arrows() -> dict[str, set[str]]:
    """Place -> places that its files import, inside the rooms."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        here = place_of(
            ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        )
        if here is not None and path.name != "__init__.py":
            used = {place_of(module) for module in imported_modules(path)} - {None, here}
            found.setdefault(here, set()).update(used)
    return found


def test_arrows_between_sub_rooms_run_one_way():
    """No circle: whoever reads a sub-room finds what it stands on below it, never above."""
    graph, done = arrows(), set()

    def walk(place: str, path: tuple[str, ...]) -> None:
        assert place not in path, f"a circle: {' -> '.join([*path[path.index(place) :], place])}"
        if place not in done:
            for used in sorted(graph.get(place, ())):
                walk(used, (*path, place))
            done.add(place)

    for place in sorted(graph):
        walk(place, ())


def test_a_sub_room_has_a_few_files():
    for room in ROOMS:
        for folder in sorted(path for path in (PACKAGE / room).iterdir() if (path / "__init__.py").is_file()):
            number = len([path for path in folder.glob("*.py") if path.name != "__init__.py"])
            assert number in FILES_OF_A_SUB_ROOM, f"{folder}: {number} files"


def test_planning_needs_no_torch():
    for path in (PACKAGE / "planning").rglob("*.py"):
        tops = {module.split(".")[0] for module in imported_modules(path)}
        assert not tops & {"torch", "transformers", "datasets", "accelerate"}, path


def test_training_needs_no_library_of_the_data_stage():
    """A GPU machine installs the train extra; datatrove and the tokenizing libraries are the data extra's."""
    code = (
        "import sys, modeling_foundry.pretraining.pipeline, modeling_foundry.alignment.pipeline;"
        "print({'datatrove', 'tiktoken', 'spacy', 'orjson', 'lm_eval', 'gradio'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


def test_shipped_model_code_imports_only_its_neighbours():
    shipped = {"configuration_foundry", "modeling_foundry", "losses", "softmax_kernels", "attention_backends"}
    shipped |= {"positions"}
    for name in shipped:
        for node in ast.walk(ast.parse((PACKAGE / "model" / f"{name}.py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                assert node.module in shipped, f"{name}.py imports .{node.module}"
            elif isinstance(node, ast.ImportFrom):
                assert not node.module.startswith("modeling_foundry")


@pytest.mark.parametrize("path", ALL_PYTHON, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_pickle_is_read(path):
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("pickle.load", "pickle.loads", "torch.load"), f"{path}:{node.lineno}"
            for keyword in node.keywords:
                unsafe = keyword.arg == "weights_only" and ast.unparse(keyword.value) == "False"
                assert not unsafe, f"{path}:{node.lineno}"
