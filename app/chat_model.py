"""A loaded checkpoint, and what becomes of a conversation or a text before it answers."""

from __future__ import annotations

import json
import threading
from collections import deque
from pathlib import Path
from typing import Any

import torch
from control_tokens import TextEncoder
from generation import Generation
from safetensors import SafetensorError
from sampling import MAX_NEW_TOKENS, RequestError, Sampling, TooLongError, check_text
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

MAX_PROMPT_CHARACTERS = 50_000
MAX_TEMPLATE_CHARACTERS = 50_000
MAX_REQUESTS = 16  # the one that runs and those that wait
TEMPLATE_SECONDS = 5.0
PROBE_CHAT = [{"role": role, "content": "text"} for role in ("user", "assistant", "user")]


class ChatModel:
    """Tokenizer and model of one checkpoint folder or Hub repository.

    Args:
        trust_remote_code: run model code that a Foundry checkpoint ships.  Not needed for a stock export, nor
            where the package ``modeling_foundry`` is installed; refused for any other kind of checkpoint.

    Raises:
        RequestError: code would be needed and is not trusted, or the chat template misbehaves.
        OSError, ValueError: no checkpoint there that transformers can load.
    """

    def __init__(
        self,
        checkpoint: str,
        device: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> None:
        disable_progress_bar()
        model_type = _model_type(checkpoint, revision)
        if trust_remote_code and model_type != "foundry":
            raise RequestError(f"--trust-remote-code is for Foundry checkpoints only; this is {model_type!r}")
        if model_type == "foundry" and not trust_remote_code:
            _register_foundry()
        options = {"trust_remote_code": trust_remote_code, "revision": revision or "main"}
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.name = _display_name(checkpoint)
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, **options)
        probe_template(self.tokenizer)
        self.encoder = TextEncoder(self.tokenizer)
        self.model = _whole_model(checkpoint, options).to(self.device).eval()
        self.num_parameters: int = self.model.num_parameters()
        self.max_positions = _max_positions(self.model.config)
        self.end_ids = _end_ids(self.model, self.tokenizer)
        self.one_at_a_time = threading.Lock()
        self.line: deque[Generation] = deque()  # those that wait, in their order
        self.places = threading.BoundedSemaphore(MAX_REQUESTS)

    def chat_ids(self, messages: list[dict[str, str]]) -> torch.Tensor:
        """Prompt ids (1, length) of a conversation.

        Raises:
            TooLongError: the conversation is too long for the model.
            RequestError: no chat template, or one that does not take this conversation.
        """
        if self.tokenizer.chat_template is None:
            raise RequestError("this model has no chat template: use /generate")
        if sum(len(message["content"]) for message in messages) > MAX_PROMPT_CHARACTERS:
            raise TooLongError(f"messages: at most {MAX_PROMPT_CHARACTERS} characters")
        for message in messages:
            check_text("messages", message["content"])
        return self._fitting("messages", self.encoder.conversation_ids(messages))

    def text_ids(self, prompt: str, num_last: int | None = None) -> torch.Tensor:
        """Prompt ids (1, length) of plain text, or its last ones; raises RequestError where it is empty or too long."""
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise TooLongError(f"prompt: at most {MAX_PROMPT_CHARACTERS} characters")
        check_text("prompt", prompt)
        ids = self.encoder.text_ids(prompt)
        if not ids:
            raise RequestError("prompt: expected some text")
        return self._fitting("prompt", ids if num_last is None else ids[-num_last:])

    def document_start_ids(self) -> torch.Tensor:
        """Ids (1, 1) from which the model begins a document."""
        first = self.tokenizer.bos_token_id
        if first is None:
            first = self.tokenizer.eos_token_id
        if first is None:
            raise RequestError("prompt: expected some text: this model has no token that begins a document")
        return self._fitting("prompt", [first])

    def given_ids(self, ids: list[int]) -> torch.Tensor:
        """Prompt ids (1, length) of a prompt sent as ids; raises RequestError where they are not this model's."""
        vocab_size = self.model.get_input_embeddings().num_embeddings
        if not ids or not all(0 <= each < vocab_size for each in ids):
            raise RequestError(f"prompt: expected text, or token ids from 0 to {vocab_size - 1}")
        return self._fitting("prompt", ids)

    def _fitting(self, name: str, ids: list[int]) -> torch.Tensor:
        if len(ids) >= self.max_positions:
            raise TooLongError(
                f"{name}: {len(ids)} tokens; this model holds {self.max_positions}, prompt and answer together"
            )
        return torch.tensor([ids], device=self.device)

    def generate(self, ids: torch.Tensor, sampling: Sampling) -> Generation:
        """An answer to iterate over; raises RequestError for sampling values that make no sense."""
        return Generation(self, ids, sampling.checked())


def _whole_model(checkpoint: str, options: dict[str, Any]) -> Any:
    """The model; raises ValueError where transformers would draw what is missing at random."""
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            checkpoint, use_safetensors=True, output_loading_info=True, **options
        )
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"weights that cannot be read: {error}") from error
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"the weights lack {', '.join(missing[:3])}")
    return model


def _model_type(checkpoint: str, revision: str | None) -> str:
    """``model_type`` from ``config.json``, without building a configuration."""
    from transformers import PreTrainedConfig

    content, _ = PreTrainedConfig.get_config_dict(checkpoint, revision=revision or "main")
    if "model_type" not in content:
        raise RequestError(
            "no config.json with a model_type here; name a checkpoint folder or a Hub repository"
        )
    return content["model_type"]


def _register_foundry() -> None:
    """A Foundry checkpoint loads through the installed package; say so where there is none."""
    try:
        import modeling_foundry  # noqa: F401  (registers the Auto classes)
    except ImportError as error:
        raise RequestError(
            "this checkpoint has model_type foundry: install modeling-foundry, export it as a stock model "
            "with recipes/publish.py, or pass --trust-remote-code if you trust its code"
        ) from error


def _display_name(checkpoint: str) -> str:
    """``quickstart/dpo`` for ``…/quickstart/dpo/model``, else the folder's name, or the repository's."""
    path = Path(checkpoint)
    if not path.exists():
        return checkpoint
    *_, experiment, stage, name = ("", "", *path.resolve().parts)
    return f"{experiment}/{stage}" if name == "model" else name


def _max_positions(config: Any) -> int:
    """Tokens that the model holds; of one without such a limit (a state-space model), more than can be asked for."""
    own = getattr(config.get_text_config(), "max_position_embeddings", None)
    return own or MAX_PROMPT_CHARACTERS + MAX_NEW_TOKENS


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: the checkpoint's own, and the tokenizer's end of text."""
    own = model.generation_config.eos_token_id
    ids = set(own if isinstance(own, list) else [own]) | {tokenizer.eos_token_id}
    return sorted(ids - {None})


def probe_template(tokenizer: Any) -> None:
    """Refuse a chat template that is huge or does not come to an end.

    transformers renders templates in a sandbox, which stops attribute tricks but neither loops nor memory.
    The thread that may hang is a daemon: the program that gets this error ends, and the thread with it.
    """
    template = tokenizer.chat_template
    if template is None:
        return
    if len(json.dumps(template)) > MAX_TEMPLATE_CHARACTERS:
        raise RequestError(f"chat template: at most {MAX_TEMPLATE_CHARACTERS} characters")
    outcome: list[Any] = []

    def render() -> None:
        try:
            text = tokenizer.apply_chat_template(PROBE_CHAT, add_generation_prompt=True, tokenize=False)
            outcome.append(len(text))
        except Exception as error:  # reported below, in the thread that loads the model
            outcome.append(error)

    thread = threading.Thread(target=render, daemon=True)
    thread.start()
    thread.join(TEMPLATE_SECONDS)
    if not outcome:
        raise RequestError(f"chat template: no result after {TEMPLATE_SECONDS:g} s on a three-line chat")
    if isinstance(outcome[0], Exception):
        raise RequestError(f"chat template: {' '.join(str(outcome[0]).split())[:200]}") from outcome[0]
    if outcome[0] > MAX_PROMPT_CHARACTERS:
        raise RequestError(f"chat template: {outcome[0]:,} characters for a three-line chat")
