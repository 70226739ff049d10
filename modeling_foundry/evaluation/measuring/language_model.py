"""lm-eval's ``hf`` model with three things its own does otherwise: answers alone, control tokens, no cut prompts.

lm-eval moves blanks at the end of a prompt into the answers and scores them there; reads text that spells a control
token as one; and cuts a prompt that is longer than the context, which only its log says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length

from ...saved_model import UNREADABLE, load_tokenizer
from ...settings import FoundryError
from .tokens import characters, prompt_and_answer, render_safely, rendered_ids

MODEL_NAME = "foundry"
END_KEY = "end_of_turn"  # of a document: the control token with which its answers end


@register_model(MODEL_NAME)
class FoundryLM(HFLM):
    """A checkpoint measured with the ids that training and the server would give it."""

    in_chat = (
        False  # whether prompts are rendered by the chat template, so that their control tokens are real
    )

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The rendered conversation; contents that spell control tokens are not obeyed."""
        self.in_chat = True
        template = super().apply_chat_template
        return render_safely(
            self.tokenizer, chat_history, lambda shown: template(shown, add_generation_prompt)
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a rendered prompt, or of ordinary text; the template alone decides on a BOS."""
        return (rendered_ids if self.in_chat else characters)(self.tokenizer, string)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Documents are no prompts: every control token they spell is characters."""
        in_chat, self.in_chat = self.in_chat, False
        try:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        finally:
            self.in_chat = in_chat

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each answer alone.

        Raises:
            ValueError: a prompt and its answer are longer than the context.
        """
        encoded = []
        for request in requests:
            prompt, answer = self.encoded(request)
            self._require_room(request, len(prompt) + len(answer) - 1)  # the last token is only predicted
            encoded.append((request.args, prompt, answer))
        # Abstract in lm-eval for models that, as here, encode in their own way.
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def encoded(self, request: Any) -> tuple[list[int], list[int]]:
        """Ids of the prompt and of the answer of one request."""
        context, answer = request.args[:2]
        if self.in_chat and context:
            end = request.doc.get(END_KEY, "") if isinstance(request.doc, dict) else ""
            return prompt_and_answer(self.tokenizer, context, answer, end)
        if context == "":
            return [self.prefix_token_id], characters(self.tokenizer, answer)
        return self._encode_pair(
            context, answer
        )  # without a template lm-eval's own way, on which its tasks rely

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Any, Any]:
        """Prompts of a generation, padded; never cut.

        Raises:
            ValueError: one leaves no room for its answer.
        """
        rows = [self.tok_encode(string) for string in strings]
        longest = max(map(len, rows))
        if left_truncate_len is not None and longest > left_truncate_len:
            raise ValueError(
                f"a prompt of {longest} tokens leaves no room for its answer; {left_truncate_len} do"
            )
        self.tokenizer.padding_side = padding_side
        padded = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        return padded["input_ids"], padded["attention_mask"]

    def num_positions(self, request: Any) -> int:
        """Positions that a request takes; a document is cut into windows and takes no more than there are."""
        if request.request_type == "loglikelihood_rolling":
            return 0
        if request.request_type == "generate_until":
            context, generation = request.args[:2]
            return (
                len(self.tok_encode(context))
                + normalize_gen_kwargs(generation, self.max_gen_toks)["max_gen_toks"]
            )
        prompt, answer = self.encoded(request)
        return len(prompt) + len(answer) - 1

    def _require_room(self, request: Any, num_positions: int) -> None:
        if num_positions > self.max_length:
            raise ValueError(
                f"{request.task_name}: item {request.doc_id}: {num_positions} tokens, "
                f"more than the context of {self.max_length}"
            )


class RequestReader(FoundryLM):
    """The same without weights: what the requests of a checkpoint will be, before anything is loaded."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoConfig

        import modeling_foundry  # noqa: F401  (registers the Auto classes)

        LM.__init__(self)
        self.tokenizer = load_tokenizer(folder)
        try:
            config = AutoConfig.from_pretrained(folder)
        except UNREADABLE as error:
            reason = " ".join(str(error).split())[:200]
            raise FoundryError(f"{folder / 'config.json'}: cannot be read ({reason})") from error
        self._max_length = resolve_max_length(config, self.tokenizer)
        self.chat_template_args: dict[str, Any] = {}
        self.add_bos_token = self.custom_prefix_token_id = None
