"""Instruction and preference samples from real functions and their docstrings.

The question is a signature, the answer the first sentence of its docstring.  A preference pair adds the first
sentence of another real function: true words, wrong function.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .corpus import Module

INSTRUCTION = "Summarize in one sentence."
MIN_WORDS, MAX_WORDS = 3, 16
MAX_SIGNATURE_CHARACTERS = 160
SENTENCE_END = re.compile(r"(?<=[.!?])\s")
# Not prose: doctests, field lists, tables, cross-reference markup, and docstrings that only point elsewhere.
NOT_PROSE = re.compile(
    r">>>|:param|@param|\||::|^\W|https?:|\bsee\b.*\bfor\b|^(deprecated|internal|todo)\b", re.I
)


@dataclass(frozen=True)
class DocumentedFunction:
    """A real function: where it is, how it is called, what its author says it does."""

    module: str
    name: str
    signature: str
    summary: str

    @property
    def question(self) -> str:
        return f"{INSTRUCTION}\n{self.signature}"


def documented_functions(modules: list[Module]) -> list[DocumentedFunction]:
    """Public functions and methods with a one-sentence summary; each question and each summary once."""
    found: list[DocumentedFunction] = []
    questions: set[str] = set()
    summaries: set[str] = set()
    for module in modules:
        for function in _functions_of(module):
            if function.question in questions or function.summary.lower() in summaries:
                continue
            questions.add(function.question)
            summaries.add(function.summary.lower())
            found.append(function)
    return found


def _functions_of(module: Module) -> Iterator[DocumentedFunction]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the source read, not in ours
            tree = ast.parse(module.text)
    except SyntaxError:
        return  # files kept broken on purpose (lib2to3's test data)
    for owner, node in _walk(tree, ""):
        summary = first_sentence(ast.get_docstring(node))
        signature = _signature(node, owner)
        if summary and not node.name.startswith("_") and len(signature) <= MAX_SIGNATURE_CHARACTERS:
            name = f"{owner}.{node.name}" if owner else node.name
            yield DocumentedFunction(module.name, name, signature, summary)


def _walk(tree: ast.AST, owner: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield owner, node
        elif isinstance(node, ast.ClassDef):
            yield from _walk(node, node.name)
        elif isinstance(node, (ast.If, ast.Try)):
            yield from _walk(node, owner)


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef, owner: str) -> str:
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    line = f"{keyword} {node.name}({ast.unparse(node.args)}):"
    return f"class {owner}:\n    {line}" if owner else line


def first_sentence(docstring: str | None) -> str | None:
    """First sentence of a docstring, in one line, or None where it is not a short piece of prose."""
    if not docstring:
        return None
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    sentence = SENTENCE_END.split(paragraph)[0].strip()
    words = sentence.split()
    if not MIN_WORDS <= len(words) <= MAX_WORDS or not sentence.isascii() or NOT_PROSE.search(sentence):
        return None
    if sentence[-1] in ",:;-(" or sentence.count("(") != sentence.count(")") or "->" in sentence:
        return None
    return sentence if sentence[-1] in ".!?" else f"{sentence}."


def conversation(function: DocumentedFunction) -> dict[str, Any]:
    """One sample for supervised fine-tuning, in TRL's conversational format."""
    messages = [_turn("user", function.question), _turn("assistant", function.summary)]
    return {"messages": messages, "module": function.module, "function": function.name}


def preference_pairs(functions: list[DocumentedFunction]) -> list[dict[str, Any]]:
    """One pair a function: its own summary chosen, that of another function rejected.

    Every second pair is hard: the rejected summary comes from the same module, where there is one.
    """
    by_module: dict[str, list[DocumentedFunction]] = defaultdict(list)
    for function in functions:
        by_module[function.module].append(function)
    pairs = []
    for number, function in enumerate(functions):
        neighbours = by_module[function.module]
        hard = number % 2 == 1 and len(neighbours) > 1
        other = _another(function, neighbours if hard else functions)
        pairs.append(
            {
                "prompt": [_turn("user", function.question)],
                "chosen": [_turn("assistant", function.summary)],
                "rejected": [_turn("assistant", other.summary)],
                "module": function.module,
                "function": function.name,
                "difficulty": "same module" if hard else "any module",
            }
        )
    return pairs


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _another(function: DocumentedFunction, pool: list[DocumentedFunction]) -> DocumentedFunction:
    """A member of ``pool`` other than ``function``, chosen by a hash of its name."""
    others = [candidate for candidate in pool if candidate is not function]
    digest = hashlib.sha256(f"{function.module}.{function.name}".encode()).digest()
    return others[int.from_bytes(digest[:8], "big") % len(others)]
