"""The running interpreter's standard library as a corpus: real text that is on every machine already."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from ...settings import FoundryError

# Distributors ship these apart or not at all (Debian: idle, python3-tk, libpython3-testsuite, no macholib;
# openSUSE: curses, dbm, sqlite3, ...), so a corpus with them would differ between machines of one version.
SHIPPED_APART = {
    "ctypes.macholib", "curses", "dbm", "distutils", "ensurepip", "idlelib", "lib2to3", "sqlite3", "test",
    "tkinter", "turtle", "turtledemo", "venv", "_pyrepl",
}  # fmt: skip
TEST_FOLDERS = {"test", "tests", "idle_test"}
# Written by programs: code pages, help texts, case tables (the only text here that NFC would change).
GENERATED = {"encodings", "pydoc_data", "re._casefix"}
NEVER = {"site-packages", "dist-packages", "__pycache__"}
# Chosen among twelve for a held-out side of many kinds and some 400 documented functions, before any training.
SPLIT_SALT = "standard-library-6"
# Tests that go by another name than the module they test.
TESTS_OF = {
    "urlparse": "urllib", "robotparser": "urllib", "smtpnet": "smtplib", "fileio": "io", "memoryio": "io",
    "bufio": "io", "univnewlines": "io",
}  # fmt: skip


@dataclass(frozen=True)
class Module:
    """One source file: dotted name and text."""

    name: str
    text: str

    @property
    def family(self) -> str:
        """What it is held out with."""
        return family_of(self.name)


def family_of(name: str) -> str:
    """Modules that belong together stand on one side of the split: a package whole, a module with its tests.

    ``json.decoder`` and ``test.test_json`` are of the family ``json``, ``_strptime`` of ``strptime`` and
    ``_pyio``, which is ``io`` written in Python, of ``io``.  A test belongs to the longest module name it
    starts with: ``test_urllib2`` to ``urllib``.
    """
    parts = name.split(".")
    if parts[0] == "test" and len(parts) > 1:
        return _tested_family(parts[1].removeprefix("test_").strip("_"))
    first = parts[0]
    public = first.strip("_")
    in_python = public.removeprefix("py").strip("_")
    twin = first.startswith("_py") and in_python in sys.stdlib_module_names
    return in_python if twin else public or first


def _tested_family(subject: str) -> str:
    if subject in TESTS_OF:
        return TESTS_OF[subject]
    names = [module for module in sys.stdlib_module_names if subject.startswith(module)]
    return max(names, key=len, default=subject)


def is_held_out(family: str, fraction: float) -> bool:
    """A pure function of the name: the same on every machine, whatever else is installed."""
    digest = hashlib.sha256(f"{SPLIT_SALT}:{family}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def corpus_sha256(modules: Iterable[Module]) -> str:
    """One hash of all names and texts: two machines with the same hash have the same corpus."""
    digest = hashlib.sha256()
    for module in modules:
        for text in (module.name, module.text):
            content = text.encode()
            digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def read_standard_library(
    include_tests: bool = False, max_modules: int | None = None, root: Path | None = None
) -> tuple[list[Module], dict[str, int]]:
    """Every module of the standard library once, sorted by name, and how many files were left out and why.

    Args:
        include_tests: also the test folders, where they are installed.
        max_modules: stop after this many files.
        root: folder to read instead of this interpreter's.

    Raises:
        FoundryError: there is no readable source.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    paths = sorted(_source_files(root, include_tests), key=lambda path: path.relative_to(root).parts)[
        :max_modules
    ]
    modules, left_out = [], {"not_decodable": 0, "duplicate": 0, "empty": 0}
    seen: set[str] = set()
    for path in tqdm(paths, desc="read modules", unit="file", mininterval=0.5, disable=len(paths) < 50):
        text = _decode(path)
        reason = _reason_to_leave_out(text, seen)
        if text is None or reason:
            left_out[reason or "not_decodable"] += 1
            continue
        seen.add(text)
        modules.append(Module(_module_name(path.relative_to(root)), text))
    if not modules:
        raise FoundryError(
            f"{root}: no Python sources here; this interpreter's standard library is not readable"
        )
    return modules, left_out


def _source_files(root: Path, include_tests: bool) -> Iterator[Path]:
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if NEVER & set(parts) or _is_among(parts, GENERATED):
            continue
        is_test = bool(TEST_FOLDERS & set(parts[:-1]))
        if is_test and not include_tests:
            continue
        if (is_test and parts[0] == "test") or (
            parts[0] in sys.stdlib_module_names and not _is_among(parts, SHIPPED_APART)
        ):
            yield path


def _is_among(parts: tuple[str, ...], names: set[str]) -> bool:
    """Whether a module or a package it is in is named: ``("ctypes", "macholib", "dyld")``."""
    return any(".".join(parts[:depth]) in names for depth in range(1, len(parts) + 1))


def _decode(path: Path) -> str | None:
    try:
        with tokenize.open(path) as file:  # honours the coding line of PEP 263
            return file.read()
    except (SyntaxError, UnicodeDecodeError):
        return None


def _reason_to_leave_out(text: str | None, seen: set[str]) -> str | None:
    if text is None:
        return "not_decodable"
    if not text.strip():
        return "empty"
    return "duplicate" if text in seen else None


def _module_name(relative: Path) -> str:
    parts = list(relative.with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def split_modules(modules: list[Module], fraction: float) -> tuple[list[Module], list[Module]]:
    """Train and held-out modules; no family is on both sides.

    Raises:
        FoundryError: one side would be empty.
    """
    held_out = [module for module in modules if is_held_out(module.family, fraction)]
    train = [module for module in modules if not is_held_out(module.family, fraction)]
    if not train or not held_out:
        raise FoundryError(
            f"held_out_fraction: {fraction} leaves {len(train)} modules to train on and {len(held_out)} held out; "
            "give another fraction or more modules"
        )
    return train, held_out
