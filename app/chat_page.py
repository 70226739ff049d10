"""The chat page: the history is sent, answers stream, settings are honoured, no file goes in or out."""

from __future__ import annotations

import html
import logging
from collections.abc import Iterator
from typing import Any

import gradio as gr
from chat_model import MAX_PROMPT_CHARACTERS, ChatModel
from sampling import BusyError, ModelError, RequestError, Sampling, TooLongError

logger = logging.getLogger(__name__)

# Of Gradio's queue, which lets a page that it turns away lose its send button.  The model's own line is far shorter,
# and says in words that it is full.
MAX_WAITING = 200
# Label -> message: what the quickstart's model was taught, and what any model can be asked.
EXAMPLES = {
    "What does read_text do?": "Summarize in one sentence.\ndef read_text(path, encoding=None):",
    "What does Queue.get do?": "Summarize in one sentence.\nclass Queue:\n    def get(self, timeout=None):",
    "What does is_valid do?": "Summarize in one sentence.\ndef is_valid(name):",
    "What does Parser.close do?": "Summarize in one sentence.\nclass Parser:\n    def close(self):",
}
FONTS = ["system-ui", "sans-serif"]  # the machine's own: the page asks no other site for anything
THEME = gr.themes.Default(
    primary_hue="indigo",
    neutral_hue="slate",
    radius_size="md",
    font=FONTS,
    font_mono=["ui-monospace", "monospace"],
)
# The page's own words in the place of an answer; the model never sees them.
NOT_ANSWERED = "⚠️ Not answered: "
NOTHING_SAID = "(the model ended its answer at once)"
STYLE = """
.gradio-container {width: 100% !important; max-width: 920px !important; margin: 0 auto !important}
h1 {text-align: left !important; margin: 0.4em 0 0 !important}
footer {display: none !important}
.message .md {white-space: pre-wrap; overflow-wrap: anywhere}
.placeholder-content {text-align: center}
.placeholder-content .examples {grid-template-columns: repeat(auto-fit, minmax(240px, 0.5fr)); max-width: 560px}
"""


# Gradio's copy buttons copy what the chatbot holds, which is escaped.
COPIES_WHAT_WAS_SAID = """
<script>
if (navigator.clipboard) {
  const write = navigator.clipboard.writeText.bind(navigator.clipboard);
  const plain = {"&lt;": "<", "&gt;": ">", "&amp;": "&"};
  navigator.clipboard.writeText = (text) => write(text.replace(/&(lt|gt|amp);/g, (found) => plain[found]));
}
</script>
"""


def letter_for_letter(chatbot: gr.Chatbot) -> gr.Chatbot:
    """Show what was said as the text it is.

    Gradio's chatbot takes a turn for HTML even where it renders no Markdown: tags vanish and images are fetched.  So
    it is given escaped text, and gives back what was said.  It also cleans indents, but only where a turn is a plain
    string.  Not a subclass: Gradio would write a ``.pyi`` beside this file.
    """
    clean, read = chatbot.postprocess, chatbot.preprocess

    def turn_of(turn: Any, text: str) -> dict[str, Any]:
        return {**turn, "content": [{"type": "text", "text": text}]}

    def postprocess(value: list[Any] | None) -> Any:
        return clean([turn_of(turn, _escaped(_text(turn["content"]))) for turn in value or []])

    def preprocess(payload: Any) -> list[Any]:
        return [turn_of(turn, html.unescape(_text(turn["content"]))) for turn in read(payload) or []]

    chatbot.postprocess, chatbot.preprocess = postprocess, preprocess
    return chatbot


def _escaped(text: str) -> str:
    """For HTML; half of a surrogate pair, which no answer to the browser can hold, is shown as a question mark."""
    return html.escape(text.encode(errors="replace").decode(), quote=False)


def as_text(name: str) -> str:
    """A name that neither Markdown nor HTML nor LaTeX takes for markup."""
    return "".join(each if each.isalnum() or each == " " else f"&#{ord(each)};" for each in name)


def unchecked(slider: gr.Slider) -> gr.Slider:
    """Let ``Sampling`` say what is wrong: Gradio's own check raises, and the page loses its send button."""
    slider.preprocess = lambda payload: payload
    return slider


def make_page(chat: ChatModel) -> gr.ChatInterface:
    """A Gradio page around one loaded model.  Mount it with THEME and STYLE."""

    def answer(
        message: str, history: list[dict[str, Any]], temperature: float, max_new_tokens: float, top_p: float,
        top_k: float, repetition_penalty: float,
    ) -> Iterator[str]:  # fmt: skip
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty)
        messages = [*said(history), {"role": "user", "content": message}]
        shown = ""
        try:
            ids, num_forgotten = recent_ids(chat, messages)
            if num_forgotten:
                gr.Info(f"The {num_forgotten} oldest messages no longer fit: the model does not see them.")
            for piece in chat.generate(ids, sampling):
                shown += piece
                yield shown
        except Exception as error:
            # Not raised, nor a gr.Error: that hides the conversation and leaves the page without its send button.
            yield NOT_ANSWERED + _reason(error)
            return
        if not shown:
            yield NOTHING_SAID

    page = gr.ChatInterface(
        answer,
        title="LLM Foundry",
        description=f"**{as_text(chat.name)}** · {chat.num_parameters:,} parameters · {chat.device} · "
        f"{chat.max_positions:,} tokens at most, prompt and answer together",
        chatbot=letter_for_letter(
            gr.Chatbot(
                show_label=False,
                height="60vh",
                buttons=["copy", "copy_all"],
                placeholder=_invitation(chat),
                render_markdown=False,  # it makes a heading of a comment and init of __init__
                latex_delimiters=[],
            )
        ),
        textbox=gr.Textbox(
            placeholder="Write a message; Shift+Enter for a new line",
            show_label=False,
            container=False,
            submit_btn=True,
            stop_btn=True,
            lines=1,
            max_length=MAX_PROMPT_CHARACTERS,
            max_lines=8,
        ),
        examples=[[message] for message in EXAMPLES.values()],
        example_labels=list(EXAMPLES),
        cache_examples=False,
        flagging_mode="never",
        api_name="chat",
        fill_height=True,
        additional_inputs_accordion=gr.Accordion("Settings", open=False),
        additional_inputs=_settings(chat),
    )
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=None)
    return page


def recent_ids(chat: ChatModel, messages: list[dict[str, str]]) -> tuple[Any, int]:
    """Prompt ids of the newest part of a conversation that fits, from a user's turn on, and how many went.

    Raises:
        TooLongError: not even the last message fits.
        RequestError: the model's template does not take it.
    """
    starts = [place for place, message in enumerate(messages) if message["role"] == "user"]
    for start in starts:
        first = 0 if start == starts[0] else start
        try:
            return chat.chat_ids(messages[first:]), first
        except TooLongError:
            if start == starts[-1]:
                raise
    raise RequestError("messages: expected one of the user")


def _settings(chat: ChatModel) -> list[gr.Slider]:
    longest = max(2, min(1024, chat.max_positions))
    sliders = [
        gr.Slider(0, 2, 0.0, step=0.05, label="Temperature", info="0 takes the likeliest token"),
        gr.Slider(1, longest, min(128, longest), step=1, label="New tokens", info="at most"),
        gr.Slider(0.05, 1, 0.9, step=0.05, label="Top-p", info="1 is off"),
        gr.Slider(0, 200, 0, step=1, label="Top-k", info="0 is off"),
        gr.Slider(1, 2, 1.0, step=0.05, label="Repetition penalty", info="1 is off"),
    ]
    return [unchecked(slider) for slider in sliders]


def _invitation(chat: ChatModel) -> str:
    return f"### Talk to {as_text(chat.name)}\nIt can be wrong, and a small model often is."


def _reason(error: Exception) -> str:
    if isinstance(error, (RequestError, BusyError, ModelError)):
        return str(error).removeprefix("messages: ")
    logger.error("the page failed", exc_info=error)
    return f"this page failed ({type(error).__name__}); the server's log says where"


def said(history: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The conversation as the model is to see it: without refused messages and the page's own words."""
    messages: list[dict[str, str]] = []
    for turn in history:
        text = _text(turn["content"])
        if turn["role"] == "assistant" and text.startswith(NOT_ANSWERED):
            messages = messages[:-1]
        else:
            messages.append({"role": turn["role"], "content": "" if text == NOTHING_SAID else text})
    return messages


def _text(content: Any) -> str:
    """Gradio gives a turn as text or as a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)
