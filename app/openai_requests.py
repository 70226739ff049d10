"""What OpenAI's clients send, null for each field that may be left out, and what of it is refused."""

from __future__ import annotations

from typing import Any, Literal

from chat_model import ChatModel
from pydantic import BaseModel, ConfigDict, Field
from request_types import Count, Flag, Number, TokenId, Whole
from sampling import MAX_NEW_TOKENS, RequestError, Sampling, refuse_what_is_not_honoured
from torch import Tensor

# Fields of OpenAI's requests that change the answer and that this server does not honour, with the values that
# ask for nothing.  Refused rather than ignored; fields outside this list and the classes below change nothing.
NOT_HONOURED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1), "reasoning_effort": (None, "none"), "verbosity": (None, "medium"), "moderation": (None,),
    "tools": (None, []), "functions": (None, []), "best_of": (None, 1), "echo": (None, False),
    "suffix": (None, ""), "response_format": (None, {"type": "text"}), "logprobs": (None, False),
    "logit_bias": (None, {}, []), "presence_penalty": (None, 0), "frequency_penalty": (None, 0),
    "modalities": (None, ["text"]), "audio": (None,), "web_search_options": (None,), "top_logprobs": (None, 0),
    "tool_choice": (None, "none", "auto"), "function_call": (None, "none", "auto"), "tool_prompt": (None, ""),
    # vLLM's additions
    "min_p": (None, 0), "min_tokens": (None, 0), "ignore_eos": (None, False), "stop_token_ids": (None, []),
    "guided_json": (None,), "guided_regex": (None,), "guided_choice": (None,), "guided_grammar": (None,),
    "structured_outputs": (None,), "prompt_logprobs": (None,), "use_beam_search": (None, False),
    "bad_words": (None, []), "allowed_token_ids": (None, []), "truncate_prompt_tokens": (None,),
    "include_stop_str_in_output": (None, False), "skip_special_tokens": (None, True),
    "continue_final_message": (None, False), "add_generation_prompt": (None, True), "documents": (None, []),
    "chat_template": (None,), "chat_template_kwargs": (None, {}),
}  # fmt: skip


class Part(BaseModel):
    """Text stands in the field of its type's name."""

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None

    def plain(self) -> str | None:
        return self.text if self.type == "text" else self.refusal


class Message(BaseModel):
    """A turn as OpenAI's schema has it; what belongs to tools is read so that it can be refused by its name."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None
    function_call: dict[str, Any] | None = None

    def plain(self, where: str) -> dict[str, str]:
        """Role and text, as chat templates take them; ``developer`` is OpenAI's newer word for ``system``.

        Raises:
            RequestError: a turn of tools, or one without text.
        """
        for field in ("tool_calls", "function_call"):
            if getattr(self, field):
                raise RequestError(
                    f"{where}.{field}: not supported by this server, whose model calls no tools"
                )
        if self.role in ("tool", "function"):
            raise RequestError(f"{where}.role: {self.role}: this server's model calls no tools")
        parts = [part.plain() for part in self.content] if isinstance(self.content, list) else [self.content]
        if parts == [None]:
            parts = [self.refusal]
        if None in parts:
            raise RequestError(f"{where}.content: expected text")
        text = "".join(part or "" for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    """``include_obfuscation`` would pad the events; it changes nothing that is said."""

    include_usage: Flag = None
    include_obfuscation: Flag = None


class Request(BaseModel):
    """What both kinds of request share; ``top_k`` and ``repetition_penalty`` are vLLM's additions."""

    model_config = ConfigDict(extra="allow")
    max_tokens: Count = None
    temperature: Number = None
    top_p: Number = None
    top_k: Whole = None
    repetition_penalty: Number = None
    seed: Whole = None
    stop: str | list[str] | None = None
    stream: Flag = None
    stream_options: StreamOptions | None = None

    def length(self) -> int | None:
        return self.max_tokens

    def sampling(self) -> Sampling:
        """Raises RequestError for a field that this server does not honour."""
        refuse_what_is_not_honoured(self.model_extra or {}, NOT_HONOURED)
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        given = {
            "max_new_tokens": self.length(), "temperature": self.temperature, "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,  # vLLM's word for off
            "repetition_penalty": self.repetition_penalty, "seed": self.seed,
            "stop": tuple(stop for stop in stops if stop),
        }  # fmt: skip
        return Sampling(**{name: value for name, value in given.items() if value is not None})


class ChatRequest(Request):
    """A conversation, to be answered."""

    messages: list[Message] = Field(min_length=1, max_length=200)
    max_completion_tokens: Count = None

    def length(self) -> int:
        """What was asked for; where nothing was, an answer ends by itself."""
        return self.max_completion_tokens or self.max_tokens or MAX_NEW_TOKENS

    def ids(self, chat: ChatModel) -> Tensor:
        """Prompt ids (1, length); raises RequestError for a conversation that this server cannot go on with."""
        return chat.chat_ids(
            [message.plain(f"messages.{place}") for place, message in enumerate(self.messages)]
        )


class CompletionRequest(Request):
    """A text, to be gone on with; also as token ids, and as the only one of a list: lm-eval sends it so.

    Without one the model begins a document.
    """

    prompt: str | list[TokenId] | list[str] | list[list[TokenId]] | None = None

    def ids(self, chat: ChatModel) -> Tensor:
        """Prompt ids (1, length); raises RequestError for several prompts, and for one that cannot be."""
        prompt = self.prompt
        if prompt is None:
            return chat.document_start_ids()
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise RequestError("prompt: one a request, not a list of several")
            prompt = prompt[0]
        return chat.text_ids(prompt) if isinstance(prompt, str) else chat.given_ids(prompt)
