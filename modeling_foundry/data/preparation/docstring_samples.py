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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .standard_library import Module

INSTRUCTION = "Summarize in one sentence."
MIN_WORDS, MAX_WORDS = 3, 16
MAX_SIGNATURE_CHARACTERS = 160
# One pair in four takes its rejected answer from the same module; the others from summaries of like length.
HARD_SHARE = 0.25
NUM_OF_LIKE_LENGTH = 8

# An abbreviation or a file suffix (".pyc. file") does not end a sentence.
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bcf\.)(?<!\bvs\.)\s(?![a-z])")
# "S.append(value) -- append value" repeats the call before it says what it does.
REPEATED_CALL = re.compile(r"^[\w.]+\([^()]*\)\s*--\s*")
MARKUP = re.compile(r"``?([^`']+)``?|`([^`']+)'|(?<![\w*])\*(\w+)\*(?![\w*])")
# Not prose: doctests, field lists, tables, call forms, grammar rules, and docstrings that only point elsewhere.
NOT_PROSE = re.compile(
    r">>>|:param|@param|\||::|^\W|https?:|\bsee\b.*\bfor\b|^(internal|todo)\b|deprecated"
    r"|^[\w.]+\(|^[\w, ]+ ?= ?|->",
    re.IGNORECASE,
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
        """What a user asks about it."""
        return f"{INSTRUCTION}\n{self.signature}"

    @property
    def digest(self) -> int:
        """A number from its name alone, for choices that every machine makes alike."""
        return int.from_bytes(hashlib.sha256(f"{self.module}.{self.name}".encode()).digest()[:8], "big")


def documented_functions(
    modules: Iterable[Module], known: Iterable[DocumentedFunction] = ()
) -> list[DocumentedFunction]:
    """Public functions and methods with a one-sentence summary; each question and each summary once.

    Args:
        known: functions whose questions and summaries are taken already: given the train side, the held-out
            side keeps no answer that was trained on.
    """
    known = list(known)
    found: list[DocumentedFunction] = []
    questions = {function.question for function in known}
    summaries = {_words(function.summary) for function in known}
    for module in modules:
        for function in _functions_of(module):
            if function.question in questions or _words(function.summary) in summaries:
                continue
            questions.add(function.question)
            summaries.add(_words(function.summary))
            found.append(function)
    return found


def _words(summary: str) -> str:
    """What two summaries share that differ in capitals and spaces alone."""
    return re.sub(r"[\s.]+", " ", summary.lower()).strip()


def _functions_of(module: Module) -> Iterator[DocumentedFunction]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the source read, not in ours
            tree = ast.parse(module.text)
    except SyntaxError:
        return  # files kept broken on purpose (lib2to3's test data)
    for owner, node in _walk(tree, ""):
        if node.name.startswith("_"):
            continue
        summary = first_sentence(ast.get_docstring(node))
        signature = _signature(node, owner)
        if summary and len(signature) <= MAX_SIGNATURE_CHARACTERS:
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
    """First sentence of a docstring, in one line and without markup, or None where it is not short prose."""
    if not docstring:
        return None
    paragraph = " ".join(docstring.strip().split("\n\n")[0].split())
    sentence = SENTENCE_END.split(REPEATED_CALL.sub("", paragraph))[0].strip()
    sentence = MARKUP.sub(lambda match: next(text for text in match.groups() if text), sentence)
    words = sentence.split()
    if not MIN_WORDS <= len(words) <= MAX_WORDS or not sentence.isascii() or NOT_PROSE.search(sentence):
        return None
    if sentence[-1] in ",:;-(" or sentence.count("(") != sentence.count(")"):
        return None
    return sentence if sentence[-1] in ".!?" else f"{sentence}."


def conversation(function: DocumentedFunction) -> dict[str, Any]:
    """One sample for supervised fine-tuning, in TRL's conversational format."""
    messages = [_turn("user", function.question), _turn("assistant", function.summary)]
    return {"messages": messages, "module": function.module, "function": function.name}


def preference_pairs(functions: Sequence[DocumentedFunction]) -> list[dict[str, Any]]:
    """One pair a function: its own summary chosen, that of another function rejected.

    Each summary is chosen once and rejected once, so nothing in an answer alone tells which it is: the question
    must be read.  About one pair in four is hard, its rejected answer from the same module; the others
    reject a summary of about the same length.
    """
    hard, easy = _divide(functions)
    rejected: dict[int, DocumentedFunction] = {}
    for group in hard:
        rejected |= _each_gets_another(group)
    for group in _of_like_length(easy):
        rejected |= _each_gets_another(group)
    is_hard = {id(function) for group in hard for function in group}
    return [
        {
            "prompt": [_turn("user", function.question)],
            "chosen": [_turn("assistant", function.summary)],
            "rejected": [_turn("assistant", rejected[id(function)].summary)],
            "module": function.module,
            "function": function.name,
            "difficulty": "same module" if id(function) in is_hard else "like length",
        }
        for function in functions
        if id(function) in rejected
    ]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


Functions = list[DocumentedFunction]


def _divide(functions: Sequence[DocumentedFunction]) -> tuple[list[Functions], Functions]:
    """Groups of one module each for the hard pairs, and all the other functions."""
    by_module: dict[str, Functions] = defaultdict(list)
    for function in functions:
        if function.digest < HARD_SHARE * 2**64:
            by_module[function.module].append(function)
    hard = [group for group in by_module.values() if len(group) > 1]
    taken = {id(function) for group in hard for function in group}
    return hard, [function for function in functions if id(function) not in taken]


def _of_like_length(functions: Functions) -> list[Functions]:
    """Groups of about eight summaries, neighbours by length; none of one alone unless there is no other."""
    ordered = sorted(functions, key=lambda function: (len(function.summary), function.digest))
    groups = [ordered[i : i + NUM_OF_LIKE_LENGTH] for i in range(0, len(ordered), NUM_OF_LIKE_LENGTH)]
    if len(groups) > 1 and len(groups[-1]) == 1:
        alone = groups.pop()
        groups[-1] += alone
    return [group for group in groups if len(group) > 1]


def _each_gets_another(group: Functions) -> dict[int, DocumentedFunction]:
    """The next of a circle in the order of a hash: nobody gets itself and everybody is given once."""
    circle = sorted(group, key=lambda function: function.digest)
    return {id(function): circle[place - 1] for place, function in enumerate(circle)}
