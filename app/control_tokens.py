"""A conversation's ids in which only the template's control tokens are real, not those that a message spells."""

from __future__ import annotations

import copy
import re
from typing import Any

from sampling import RequestError

FIRST_PRIVATE, LAST_PRIVATE = 0xE000, 0xF8FF  # characters that no text should have


def control_tokens(tokenizer: Any) -> list[str]:
    """Spellings of the tokens that are no text, longest first."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return sorted(filter(None, special), key=len, reverse=True)


class TextEncoder:
    """Ids of conversations and of plain text.

    The one option that tells them apart is a state of the tokenizer that each call would set, while another thread
    encodes: so there are two tokenizers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.plain = tokenizer, copy.deepcopy(tokenizer)
        self.plain.split_special_tokens = True

    def text_ids(self, text: str, **options: Any) -> list[int]:
        """Ids of plain text: a control token that it spells is encoded as the characters it is."""
        ids: list[int] = self.plain(text, **options)["input_ids"]
        return ids

    def conversation_ids(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a conversation with the beginning of an answer.

        transformers encodes the rendered conversation as one text, in which the end of a turn that a message spells
        would be a real one.  Where the template does not break such spellings itself, they are marked while it
        renders, and what stands between its own control tokens is encoded as plain text.

        Raises:
            RequestError: the template does not take the conversation.
        """
        rendered, tokens = _rendered(self.tokenizer, messages), control_tokens(self.tokenizer)
        spelled = [token for token in tokens if any(token in message["content"] for message in messages)]
        if spelled:
            mark = _unused_character(rendered)
            marked = _rendered(self.tokenizer, [_marked(message, spelled, mark) for message in messages])
            real = re.compile("|".join(map(re.escape, tokens)))
            if len(real.findall(rendered)) > len(real.findall(marked)):
                return self._ids_between(marked, real, mark)
        ids: list[int] = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        return ids

    def _ids_between(self, marked: str, real: re.Pattern[str], mark: str) -> list[int]:
        ids: list[int] = []
        place = 0
        for found in real.finditer(marked):
            ids += self.text_ids(marked[place : found.start()].replace(mark, ""), add_special_tokens=False)
            ids.append(self.tokenizer.convert_tokens_to_ids(found.group()))
            place = found.end()
        return ids + self.text_ids(marked[place:].replace(mark, ""), add_special_tokens=False)


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    try:
        text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program of the checkpoint, run on what was sent
        reason = " ".join(str(error).split())[:200]
        raise RequestError(f"messages: not what this model's chat template takes: {reason}") from error
    return text


def _marked(message: dict[str, str], spelled: list[str], mark: str) -> dict[str, str]:
    """With a mark after the first character of each spelling."""
    content = message["content"]
    for token in spelled:
        content = content.replace(token, token[:1] + mark + token[1:])
    return {**message, "content": content}


def _unused_character(text: str) -> str:
    return next(chr(code) for code in range(FIRST_PRIVATE, LAST_PRIVATE) if chr(code) not in text)
