"""The commands of ``recipes/prepare_data.py``: a settings class and the function that acts on it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from ..settings import parse, parse_command
from .settings import (
    ChatSettings,
    CleanSettings,
    DataSettings,
    InspectSettings,
    LintSettings,
    ManifestSettings,
    TokenizeSettings,
    VerifySettings,
)


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        action: ``module:function`` in this package, imported when needed, called with the settings.
    """

    settings: type
    help: str
    action: str


COMMANDS: dict[str, Command] = {
    "prepare": Command(
        DataSettings, "a small corpus in one go: tokenizer, token shards, samples", "preparation:prepare"
    ),
    "manifest": Command(
        ManifestSettings, "the list of files a large corpus is made of", "manifest_scan:make_manifest"
    ),
    "tokenize": Command(TokenizeSettings, "the files of a manifest to token shards", "corpus_build:tokenize"),
    "verify": Command(VerifySettings, "check every byte of a corpus", "verification:verify"),
    "inspect": Command(InspectSettings, "statistics, pictures and a packed sample", "inspection:inspect"),
    "clean": Command(
        CleanSettings, "filter, deduplicate and decontaminate documents, with a report", "cleaning:clean"
    ),
    "chat": Command(
        ChatSettings, "a public chat or preference dataset in TRL's formats", "chat_preparation:prepare_chat"
    ),
    "lint": Command(
        LintSettings, "samples, tokenizer and chat template checked before training", "chat_linter:lint"
    ),
}


def main(argv: Sequence[str] | None = None, description: str = "") -> None:
    """Run one command; without one, ``prepare``.

    Raises:
        FoundryError: bad input, in one line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        (settings,) = parse(DataSettings, argv=arguments, description=description)
        name = "prepare"
    else:
        kinds = {name: (command.settings, command.help) for name, command in COMMANDS.items()}
        name, settings = parse_command(kinds, arguments, description)
    module, function = COMMANDS[name].action.split(":")
    getattr(import_module(f".{module}", __package__), function)(settings)
