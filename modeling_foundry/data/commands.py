"""The commands of ``recipes/prepare_data.py``: a settings class and the function that acts on it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from ..settings import parse, parse_command
from .chat.settings import ChatSettings
from .cleaning.settings import CleanSettings
from .inspection.settings import InspectSettings, VerifySettings
from .linting.settings import LintSettings
from .preparation.settings import DataSettings
from .sources.settings import ManifestSettings
from .tokenization.settings import TokenizeSettings


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
        DataSettings,
        "a small corpus in one go: tokenizer, token shards, samples",
        "preparation.pipeline:prepare",
    ),
    "manifest": Command(
        ManifestSettings, "the list of files a large corpus is made of", "sources.scan:make_manifest"
    ),
    "tokenize": Command(
        TokenizeSettings, "the files of a manifest to token shards", "tokenization.pipeline:tokenize"
    ),
    "verify": Command(VerifySettings, "check every byte of a corpus", "inspection.verify:verify"),
    "inspect": Command(
        InspectSettings, "statistics, pictures and a packed sample", "inspection.pictures:inspect"
    ),
    "clean": Command(
        CleanSettings,
        "filter, deduplicate and decontaminate documents, with a report",
        "cleaning.pipeline:clean",
    ),
    "chat": Command(
        ChatSettings, "a public chat or preference dataset in TRL's formats", "chat.pipeline:prepare_chat"
    ),
    "lint": Command(
        LintSettings, "samples, tokenizer and chat template checked before training", "linting.pipeline:lint"
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
