"""Text to token ids as training reads it: what spells a control token is characters, what the template writes is one.

transformers encodes a rendered conversation as one text, in which a spelling within a message would be obeyed.  The
template of ``prepare_data.py`` breaks it by a space; for a template that does not, the messages are broken before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Message = dict[str, Any]


@functools.lru_cache(maxsize=8)
def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Id and spelling of the tokens marked special."""
    return {id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special}


def characters(tokenizer: Any, text: str) -> list[int]:
    """Ids of ordinary text: a control token that it spells is the characters it is, and nothing is added."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids


def rendered_ids(tokenizer: Any, rendered: str) -> list[int]:
    """Ids of a rendered conversation, control tokens obeyed: as ``apply_chat_template(tokenize=True)`` gives them."""
    return tokenizer(rendered, add_special_tokens=False, split_special_tokens=False, verbose=False).input_ids


def spells(tokenizer: Any, text: str) -> bool:
    """Whether a text spells a control token."""
    return any(token in text for token in control_tokens(tokenizer).values())


def broken(tokenizer: Any, text: str) -> str:
    """A text in which a space breaks every control token, as in ``<| im_end |>``."""
    for token in sorted(control_tokens(tokenizer).values(), key=len, reverse=True):
        inner = (
            f"<| {token[2:-2]} |>" if token[:2] == "<|" and token[-2:] == "|>" else f"{token[:1]} {token[1:]}"
        )
        text = text.replace(token, inner)
    return text


def render_safely(tokenizer: Any, messages: Sequence[Message], render: Callable[[list[Message]], str]) -> str:
    """The rendered conversation, of whose control tokens all are the template's own.

    Args:
        render: the template's work on messages.
    """
    text = render(list(messages))
    if not any(spells(tokenizer, message.get("content") or "") for message in messages):
        return text
    plain = render([_broken_message(tokenizer, message) for message in messages])
    control = control_tokens(tokenizer)
    obeyed, written = (sum(id in control for id in rendered_ids(tokenizer, one)) for one in (text, plain))
    return text if obeyed == written else plain


def _broken_message(tokenizer: Any, message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": broken(tokenizer, content)} if content else message


def question(tokenizer: Any, messages: Sequence[Message], carried: Mapping[str, Any] | None = None) -> str:
    """A conversation rendered up to where the assistant's answer begins.

    Args:
        carried: ``tools`` and ``chat_template_kwargs``, as TRL hands them to the template.
    """
    more = dict(carried or {})
    options = {**more.pop("chat_template_kwargs", {}), **more}

    def render(shown: list[Message]) -> str:
        return tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True, **options)

    return render_safely(tokenizer, messages, render)


def prompt_and_answer(
    tokenizer: Any, rendered: str, answer: str, end_of_turn: str = ""
) -> tuple[list[int], list[int]]:
    """Ids of a rendered prompt and of the answer alone: of what the template wrote before it, nothing is scored.

    Where the tokens of an answer would begin before it does (``Assistant: `` and ``Yes``), it is encoded by itself, as
    a server encodes a prompt that it answers.

    Args:
        end_of_turn: a control token that is one where the answer ends with it; elsewhere it is characters.
    """
    prompt, text = rendered_ids(tokenizer, rendered), answer.removesuffix(end_of_turn)
    end = rendered_ids(tokenizer, end_of_turn) if end_of_turn and text != answer else []
    if spells(tokenizer, text):
        return prompt, characters(tokenizer, text) + end
    whole = rendered_ids(tokenizer, rendered + answer)
    if whole[: len(prompt)] == prompt:
        return prompt, whole[len(prompt) :]
    return prompt, characters(tokenizer, text) + end
