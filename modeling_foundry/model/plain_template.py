"""A chat template without transformers' own tags.

``{% generation %}`` marks what is learned.  Only transformers knows it: plain Jinja, and the readers that have their
own (TGI, vLLM's front end, mistral.rs, llama.cpp), refuse a template that holds it.
"""

from __future__ import annotations

import re
from typing import Any

from jinja2 import TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from ..settings import FoundryError

_STRING = r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\""""
# Comments, raw text and expressions are matched so that what they spell is not taken for a tag.
PIECES = re.compile(
    r"\{#.*?#\}"
    r"|\{%[-+]?\s*raw\s*[-+]?%\}.*?\{%[-+]?\s*endraw\s*[-+]?%\}"
    rf"|\{{\{{(?:{_STRING}|[^'\"])*?\}}\}}"
    rf"|\{{%(?P<left>[-+]?)(?P<words>(?:{_STRING}|[^'\"])*?)(?P<right>[-+]?)%\}}",
    re.DOTALL,
)
MARKS = ("generation", "endgeneration")
USER = {"role": "user", "content": " Say “hi” <|im_start|>\n\n"}
ANSWER = {"role": "assistant", "content": "  cafe\u0301 {{ 1 }}\n"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"left": 1, "right": "<2>"}}}
CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [USER],
    [USER, ANSWER],
    [{"role": "system", "content": "Be brief."}, USER, ANSWER, {"role": "user", "content": ""}],
    [USER, {"role": "assistant", "content": "<think>\nWhy?\n</think>\n\nYes."}, USER, ANSWER],
    [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "3"},
        ANSWER,
    ],
)
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}


def plain_templates(tokenizer: PreTrainedTokenizerBase, where: str) -> Any:
    """``tokenizer.chat_template`` without the tags: a text, texts by their names, or None.

    Raises:
        FoundryError: :func:`plain_template`'s.
    """
    templates = tokenizer.chat_template
    if isinstance(templates, dict):
        return {name: plain_template(tokenizer, text, where) for name, text in templates.items()}
    return None if templates is None else plain_template(tokenizer, templates, where)


def plain_template(tokenizer: PreTrainedTokenizerBase, template: str, where: str) -> str:
    """``template`` without the tags, shown to render as before.

    Args:
        where: folder or file of the template, for the message.

    Raises:
        FoundryError: plain Jinja cannot read what is left, or a conversation is rendered otherwise.
    """
    plain = without_marks(template)
    if plain == template:
        return template
    try:
        _plain_environment().parse(plain)
    except TemplateSyntaxError as error:
        raise FoundryError(
            f"{where}: without {{% generation %}} the chat template is none of plain Jinja ({error})"
        ) from error
    renderings = [_renderings(tokenizer, text) for text in (template, plain)]
    for before, after in zip(*renderings, strict=True):
        if before != after:
            raise FoundryError(
                f"{where}: without {{% generation %}} the chat template says {after!r:.200} in place of "
                f"{before!r:.200}; set no variable inside these tags that is read outside"
            )
    if not any(isinstance(rendered, str) for rendered in renderings[0]):
        raise FoundryError(f"{where}: the chat template renders no conversation ({renderings[0][0]!r:.200})")
    return plain


def without_marks(template: str) -> str:
    """Cut the tags out; a comment stays where one decides about the blanks around it, as ``{%- … -%}`` does."""

    def cut(piece: re.Match[str]) -> str:
        if (piece["words"] or "").strip() not in MARKS:
            return piece[0]
        neighbours = template[: piece.start()][-1:] + template[piece.end() :][:1]
        if not any(character.isspace() for character in neighbours):
            return ""
        return f"{{#{piece['left']} {piece['right']}#}}"

    return PIECES.sub(cut, template)


def _plain_environment() -> ImmutableSandboxedEnvironment:
    """As transformers makes it, without its extension."""
    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )


def _renderings(tokenizer: PreTrainedTokenizerBase, template: str) -> list[str | tuple[str, str]]:
    """Of each conversation, with and without tools and the next turn's head: its text, or its refusal."""
    return [
        _rendering(tokenizer, template, conversation, tools, goes_on)
        for conversation in CONVERSATIONS
        for tools in (None, [TOOL])
        for goes_on in (False, True)
    ]


def _rendering(
    tokenizer: PreTrainedTokenizerBase, template: str, conversation: list, tools: Any, goes_on: bool
) -> str | tuple[str, str]:
    try:
        return tokenizer.apply_chat_template(
            conversation, tools=tools, chat_template=template, add_generation_prompt=goes_on, tokenize=False
        )
    except Exception as error:  # whatever a template raises for a role or a kind of content it does not know
        return type(error).__name__, str(error)
