"""Types of a request's fields: what JSON's writers send in the place of a number, and null for what is not said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from sampling import number, truth, whole_number


def _or_nothing(convert: Callable[[Any], Any]) -> BeforeValidator:
    return BeforeValidator(lambda value: None if value is None else convert(value))


Number = Annotated[float | None, _or_nothing(number)]
Whole = Annotated[int | None, _or_nothing(whole_number)]
Count = Annotated[int | None, Field(ge=1), _or_nothing(whole_number)]
TokenId = Annotated[int, BeforeValidator(whole_number)]
Flag = Annotated[bool | None, BeforeValidator(truth)]
