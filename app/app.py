"""Chat with a checkpoint in the browser, and serve it to OpenAI-compatible clients.

    python app/app.py --model runs/quickstart/dpo/model

Needs torch, transformers, gradio, fastapi and huggingface_hub only, so that the folder also runs as a Space.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gradio as gr
import uvicorn

try:
    from app.api import make_api
    from app.chat_model import BusyError, ChatModel, RequestError, Sampling
except ImportError:  # a Space runs the folder's files side by side
    from api import make_api
    from chat_model import BusyError, ChatModel, RequestError, Sampling

LOOPBACK = ("127.0.0.1", "localhost", "::1")
EXAMPLES = [
    "Summarize in one sentence.\ndef read_text(path, encoding=None):",
    "Summarize in one sentence.\nclass Queue:\n    def get(self, timeout=None):",
]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("CHECKPOINT"), help="checkpoint folder or Hub repository")
    parser.add_argument("--host", default="127.0.0.1", help="any other address needs APP_USER and APP_PASSWORD")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--trust-remote-code", action="store_true", help="run model code the checkpoint ships")
    arguments = parser.parse_args(argv)
    if arguments.model is None:
        parser.error("--model: give a checkpoint folder or a Hub repository (or set CHECKPOINT)")
    return arguments


def credentials(host: str) -> tuple[str, str] | None:
    """User and password of the page from the environment; open only on this machine.

    Raises:
        RequestError: another address without them.
    """
    user, password = os.environ.get("APP_USER"), os.environ.get("APP_PASSWORD")
    if user and password:
        return user, password
    if host not in LOOPBACK and "SPACE_ID" not in os.environ:
        raise RequestError(f"--host {host} lets others in: set APP_USER and APP_PASSWORD first")
    return None


def make_page(chat: ChatModel) -> gr.ChatInterface:
    """The chat page: history is sent, answers stream, settings are honoured."""

    def answer(
        message: str, history: list[dict[str, Any]], temperature: float, max_tokens: float, top_p: float,
        top_k: float, penalty: float,
    ) -> Iterator[str]:  # fmt: skip
        messages = [{"role": turn["role"], "content": _text(turn["content"])} for turn in history]
        sampling = Sampling(int(max_tokens), temperature, top_p, int(top_k), penalty)
        shown = ""
        try:
            for piece in chat.stream(chat.chat_ids([*messages, {"role": "user", "content": message}]), sampling):
                shown += piece
                yield shown
        except (RequestError, BusyError) as error:
            raise gr.Error(str(error), print_exception=False) from error

    return gr.ChatInterface(
        answer,
        title="LLM Foundry",
        description=f"{chat.name}: {chat.num_parameters:,} parameters on {chat.device}. It makes things up.",
        examples=[[example] for example in EXAMPLES],
        cache_examples=False,
        api_name="chat",
        additional_inputs_accordion=gr.Accordion("Settings", open=False),
        additional_inputs=[
            gr.Slider(0, 2, 0.0, step=0.05, label="Temperature (0 is greedy)"),
            gr.Slider(1, 1024, 64, step=1, label="New tokens at most"),
            gr.Slider(0.05, 1, 0.9, step=0.05, label="Top-p"),
            gr.Slider(0, 200, 0, step=1, label="Top-k (0 is off)"),
            gr.Slider(1, 2, 1.0, step=0.05, label="Repetition penalty"),
        ],
    )


def _text(content: Any) -> str:
    """Gradio gives a turn as text or as a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)


def main() -> None:
    arguments = parse_arguments()
    try:
        auth = credentials(arguments.host)
        chat = ChatModel(arguments.model, arguments.device, arguments.trust_remote_code)
    except (OSError, ValueError) as error:  # no such checkpoint, or not one that loads
        print(f"error: --model {arguments.model}: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        raise SystemExit(2) from None
    page = make_page(chat)
    page.queue(max_size=32, default_concurrency_limit=1)
    # Handlers return text only, so nothing is served from the disk.
    application = gr.mount_gradio_app(
        make_api(chat, auth), page, path="/", auth=auth, show_error=False, allowed_paths=[], blocked_paths=["/"]
    )
    print(f"chat: http://{arguments.host}:{arguments.port}   API: /v1/chat/completions /generate /health")
    uvicorn.run(application, host=arguments.host, port=arguments.port, log_level="warning")


if __name__ == "__main__":
    main()
