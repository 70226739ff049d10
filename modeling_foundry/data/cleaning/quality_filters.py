"""datatrove's quality filters by short names, with their own defaults; refused by name where they cannot run."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...settings import FoundryError

# Short name -> class in datatrove.pipeline.filters.  These need no download.
OFFLINE_FILTERS = {
    "gopher_repetition": "GopherRepetitionFilter",
    "gopher_quality": "GopherQualityFilter",
    "c4_quality": "C4QualityFilter",
    "c4_paragraph": "C4ParagraphFilter",
    "fineweb_quality": "FineWebQualityFilter",
}


@dataclass(frozen=True)
class Download:
    """A filter that reads a file which datatrove would download at the first document.

    Args:
        file: where datatrove keeps it, below its folder in Hugging Face's assets cache.
        has_mark: whether an empty file ``FILE.completed`` must stand beside it, or it is downloaded again.
    """

    class_name: str
    what: str
    file: str
    has_mark: bool = False


DOWNLOADED_FILTERS = {
    "language": Download(
        "LanguageFilter",
        "the fastText model lid.176.bin",
        "lid/ft176/https:__dl.fbaipublicfiles.com_fasttext_supervised-models_lid.176.bin",
        has_mark=True,
    ),
    "unigram_log_prob": Download(
        "UnigramLogProbFilter",
        "the word frequencies unigram_freq.csv",
        "filters/unigram_logprob_filter/unigram_freq.csv",
    ),
}


def build_filter(name: str, options: dict[str, Any], language: str) -> Any:
    """A filter step with datatrove's defaults, other than the options given.

    Raises:
        FoundryError: the name or an option is not known, a package is missing, or a file it would download.
    """
    kind = _class_of(name)
    parameters = inspect.signature(kind.__init__).parameters
    known = [key for key in parameters if key not in ("self", "exclusion_writer", "language")]
    for key, value in options.items():
        if key not in known:
            raise FoundryError(
                f"filter_options: {name}: {key}: unknown; accepted: {', '.join(known) or 'none'}"
            )
        _check_option(f"filter_options: {name}: {key}", value, parameters[key].default)
    if "language" in parameters:
        options = {**options, "language": language}
    try:
        return kind(**options)
    except (ImportError, TypeError, ValueError) as error:
        raise FoundryError(f"filters: {name}: {' '.join(str(error).split())}") from error


def _class_of(name: str) -> Any:
    from datatrove.pipeline import filters
    from huggingface_hub.constants import HF_ASSETS_CACHE

    if name in OFFLINE_FILTERS:
        return getattr(filters, OFFLINE_FILTERS[name])
    if name not in DOWNLOADED_FILTERS:
        raise FoundryError(
            f"filters: {name}: unknown; accepted: {', '.join([*OFFLINE_FILTERS, *DOWNLOADED_FILTERS])}"
        )
    needed = DOWNLOADED_FILTERS[name]
    path = Path(HF_ASSETS_CACHE, "datatrove", needed.file)
    for wanted in (path, *([Path(f"{path}.completed")] if needed.has_mark else [])):
        if not wanted.is_file():
            raise FoundryError(
                f"filters: {name}: needs {needed.what}; {wanted} is missing; put it there or leave the filter out"
            )
    return getattr(filters, needed.class_name)


def _check_option(where: str, value: Any, default: Any) -> None:
    """Whether a value is of its default's kind; what has no default that tells, takes anything."""
    kinds: tuple[type, ...]
    if isinstance(default, bool):
        kinds, words = (bool,), "true or false"
    elif isinstance(default, int | float):
        kinds, words = (int, float), "a number"
    elif isinstance(default, tuple):
        kinds, words = (list,), "a list"
    else:
        return
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise FoundryError(f"{where}: expected {words}, found {value!r}")


def check_language(language: str) -> None:
    """Refuse a language whose words cannot be split here.

    Raises:
        FoundryError: datatrove does not know it, or needs a package or a model for it.
    """
    from datatrove.utils.word_tokenizers import SpaCyTokenizer, load_word_tokenizer

    try:
        tokenizer = load_word_tokenizer(language)
    except (ImportError, ValueError) as error:
        raise FoundryError(f"language: {language}: {' '.join(str(error).split())}") from error
    if not isinstance(tokenizer, SpaCyTokenizer):
        raise FoundryError(
            f"language: {language}: datatrove splits its words with {type(tokenizer).__name__}, which is not tested "
            "without a download; expected a language that spaCy's rules split, such as eng, deu, fra or spa"
        )
    try:
        tokenizer.word_tokenize("one two")
    except (ImportError, OSError) as error:
        raise FoundryError(f"language: {language}: {' '.join(str(error).split())}") from error


def unused_options(filters: Sequence[str], options: dict[str, Any]) -> None:
    """Refuse options that nothing would read.

    Raises:
        FoundryError: naming the first.
    """
    for name, value in options.items():
        if name not in filters:
            raise FoundryError(
                f"filter_options: {name}: not in filters ({', '.join(filters) or 'none given'})"
            )
        if not isinstance(value, dict):
            raise FoundryError(f"filter_options: {name}: expected a mapping of options, found {value!r}")
