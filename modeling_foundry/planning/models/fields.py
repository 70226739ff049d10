"""Reading a model's description from a file: JSON or JSONC configurations and the project's YAML recipes.

What a file is, is decided by its content: text that begins with ``{`` is JSON (comments allowed), anything
else is a recipe.  Numbers that are no numbers (``NaN``), keys given twice and wrong types are refused.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ...files import RepeatedKeyError, object_of_unique_keys
from ...settings import FoundryError, read_yaml

MAX_FILE_BYTES = 1_000_000
MAX_RECIPE_BYTES = 30_000  # a recipe has about forty keys
REQUIRED = object()

# Anything above these is a typing error or an attack on the arithmetic, not a model.
LARGEST = 10_000_000
LARGEST_COUNT = 100_000


class PlanError(FoundryError):
    """A plan that cannot be made from what was given; one printable line, whatever a file is called."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Text without line breaks, terminal controls and halves of characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


class Fields:
    """Typed access to a mapping; every complaint names the file, the key and what would be right."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self.values, self.source = values, source

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def fail(self, key: str, problem: str) -> NoReturn:
        raise PlanError(f"{self.source}: {key}: {problem}")

    def integer(self, key: str, default: Any = REQUIRED, minimum: int = 1, maximum: int = LARGEST) -> Any:
        """A whole number within bounds; a key that is missing or null takes the default."""
        value = self.values.get(key)
        if value is None:
            return self._default(key, default, "a whole number")
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(key, f"expected a whole number, found {_shown(value)}")
        if not minimum <= value <= maximum:
            self.fail(key, f"expected a whole number from {minimum:,} to {maximum:,}, found {_shown(value)}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            self.fail(key, f"expected true or false, found {_shown(value)}")
        return default if value is None else value

    def choice(self, key: str, choices: tuple[str, ...], default: Any = REQUIRED) -> Any:
        value = self.values.get(key)
        if value is None:
            return self._default(key, default, f"one of {', '.join(choices)}")
        if value not in choices:
            self.fail(key, f"expected one of {', '.join(choices)}, found {_shown(value)}")
        return value

    def strings(self, key: str) -> list[str] | None:
        value = self.values.get(key)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(item, str) for item in value)
        ):
            self.fail(key, f"expected a list of words, found {_shown(value)}")
        return value

    def integers(self, key: str) -> list[int]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in value):
            self.fail(key, f"expected a list of whole numbers, found {_shown(value)}")
        return value

    def _default(self, key: str, default: Any, kind: str) -> Any:
        if default is REQUIRED:
            self.fail(key, f"missing; expected {kind}")
        return default


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**40:
        return "a whole number of more than 40 digits"  # printing it could take longer than reading it
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_mapping(path: str | Path) -> tuple[dict[str, Any], bool]:
    """The mapping a file holds, and whether it is JSON (else a YAML recipe).

    Raises:
        PlanError: the file cannot be read, or is neither a JSON object nor ``key: value`` lines.
    """
    path = Path(path)
    if os.path.isdir(path):  # Path.is_dir raises where a name is too long
        path = path / "config.json"
    text = _read_text(path)
    bare = _without_comments(text, path)
    if bare.lstrip().startswith(("{", "[")):
        return _parse_json(bare, path), True
    if len(text) > MAX_RECIPE_BYTES:
        raise PlanError(f"{path}: larger than {MAX_RECIPE_BYTES:,} bytes; expected a recipe")
    return _parse_recipe(path), False


def _read_text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)  # a device may never end
        if len(content) > MAX_FILE_BYTES:
            raise PlanError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes; expected a model configuration")
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise PlanError(f"{path}: cannot read the model file ({reason})") from error
    if not text.strip():
        raise PlanError(f"{path}: empty; expected a JSON configuration or a YAML recipe")
    return text


# What is never closed is matched to its end all the same: looking for it again and again takes minutes.
_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"?|//[^\n]*|/\*.*?(?:\*/|\Z)', re.DOTALL)


def _without_comments(text: str, path: Path) -> str:
    """JSONC to JSON; line breaks stay, so that an error still names the right line."""
    is_json = text.lstrip().startswith(("{", "[", "/"))  # in YAML neither mark begins a comment

    def blank(match: re.Match[str]) -> str:
        found = match.group()
        if found.startswith('"'):
            return found
        if is_json and found.startswith("/*") and not (len(found) > 3 and found.endswith("*/")):
            line = text.count("\n", 0, match.start()) + 1
            raise PlanError(f"{path}:{line}: a comment begins here and never ends")
        return re.sub(r"[^\n]", " ", found)

    return _TOKEN.sub(blank, text)


def _parse_json(text: str, path: Path) -> dict[str, Any]:
    def refuse_constant(word: str) -> NoReturn:
        raise PlanError(f"{path}: {word} is not a number")

    try:
        values = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=object_of_unique_keys)
    except RepeatedKeyError as error:
        raise PlanError(f"{path}: {error.key[:60]}: given twice; keep one") from error
    except json.JSONDecodeError as error:
        raise PlanError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error
    except RecursionError as error:
        raise PlanError(f"{path}: nested too deeply; expected a model configuration") from error
    except ValueError as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError(f"{path}: not valid JSON (a number of too many digits)") from error
    if not isinstance(values, dict):
        raise PlanError(f"{path}: expected a JSON object, found {_shown(values)}")
    return values


def _parse_recipe(path: Path) -> dict[str, Any]:
    try:
        _refuse_aliases(path)
        written = read_yaml(path)
    except PlanError:
        raise
    except FoundryError as error:
        raise PlanError(str(error)) from error
    except RecursionError as error:
        raise PlanError(f"{path}: nested too deeply; expected `key: value` lines") from error
    except (yaml.YAMLError, ValueError, IndexError, AttributeError, TypeError) as error:
        raise PlanError(f"{path}: not valid YAML ({' '.join(str(error).split())[:120]})") from error
    return {key: _plain(value) for key, value in written.items()}


def _refuse_aliases(path: Path) -> None:
    """A few nested aliases expand to more values than any memory holds."""
    try:
        tokens = list(yaml.scan(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader))
    except yaml.YAMLError:
        return  # read_yaml says what is wrong, and where
    if any(isinstance(token, yaml.AliasToken) for token in tokens):
        raise PlanError(f"{path}: uses an alias (*name); recipes are flat `key: value` lines")


def _plain(written: Any) -> Any:
    """A value as the settings loader would read it for a field that takes any type."""
    if hasattr(written, "text"):
        return written.text if written.quoted else _scalar(written.text)
    if hasattr(written, "items") and isinstance(written.items, tuple):
        return [_plain(item) for item in written.items]
    return written.value


def _scalar(text: str) -> Any:
    word = text.lower()
    if word in ("true", "yes", "on"):
        return True
    if word in ("false", "no", "off"):
        return False
    if word in ("", "~", "null", "none"):
        return None
    if re.fullmatch(r"[+-]?[0-9][0-9_]{0,40}", text):
        return int(text)
    if re.fullmatch(r"[0-9_]{1,40}(\.[0-9]*)?[eE][+-]?[0-9]{1,3}", text):
        number = float(text)  # 1e6 is a common way to write a whole number
        return int(number) if number.is_integer() and number < 1e30 else number
    try:
        return float(text)
    except ValueError:
        return text
