"""The one settings loader: strict flat YAML plus command-line overrides into dataclasses.

``recipes/x.py --config experiment.yaml --learning_rate=3e-4`` reads every value as the text it was
written as and converts it once, by the type of the dataclass field.  So ``007`` stays text for a text
field, ``no`` is not silently a boolean, and ``1e-3`` is a number.  An unknown key, a wrong type, a bad
choice, a duplicate key or a list for a scalar is one line on stderr and exit code 2.

Imports neither torch nor transformers: the planner answers in less time than they take to import.
"""

from .errors import FoundryError, SettingsError, sought
from .loader import neutral_settings, parse, parse_command, setting
from .program import run, skip_teardown
from .written import read_yaml

__all__ = [
    "FoundryError",
    "SettingsError",
    "neutral_settings",
    "parse",
    "parse_command",
    "read_yaml",
    "run",
    "setting",
    "skip_teardown",
    "sought",
]
