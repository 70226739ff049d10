"""What was said is shown letter for letter: no markup, so nothing that a browser would fetch."""

import html
import json
import re

import pytest
from hypothesis import given, strategies

MARKUP = [
    "if (a<b && c>d)", "<img src=http://127.0.0.1:9/x>", "![x](http://127.0.0.1:9/y)", "$x$ $$y$$", "**b** __init__",
    "<script>alert(1)</script>", "&lt;b&gt; &amp; &copy; &#60;", "<!-- x -->", "<thinking>x</thinking>", "# x\n- y",
    "<svg onload=alert(1)>", "```\n<b>\n```", "<http://x>", '<a href="javascript:alert(1)">x</a>', "a\n\n    b  c",
]  # fmt: skip
TAG = re.compile(r"<|&(?!(lt|gt|amp);)")


@pytest.fixture(scope="module")
def chatbot():
    import gradio
    from chat_page import letter_for_letter

    return letter_for_letter(gradio.Chatbot())


def shown(chatbot, text, role="user"):
    """The text that the browser is given for HTML."""
    (turn,) = chatbot.postprocess([{"role": role, "content": text}]).model_dump()
    (part,) = turn["content"]
    return part["text"]


@pytest.mark.parametrize("text", MARKUP)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_nothing_said_is_markup(chatbot, text, role):
    sent = shown(chatbot, text, role)
    assert not TAG.search(sent)
    assert html.unescape(sent) == text


@given(text=strategies.text(strategies.sampled_from("<>&;ltgampcopy#60 \n\té中x"), max_size=40))
def test_what_was_said_comes_back_for_the_next_prompt(chatbot, text):
    """An inverse: a message that spells an entity keeps it."""
    from chat_page import said

    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": f"    {text}\n"}]
    assert said(chatbot.preprocess(chatbot.postprocess(turns))) == turns


def test_the_page_keeps_indents(chatbot):
    """Gradio's chatbot passes what was said through ``inspect.cleandoc``, and the next prompt is made of that."""
    code = "class Queue:\n    def get(self):\n        return __init__"
    assert shown(chatbot, f"    {code}") == f"    {code}"


def test_half_a_surrogate_pair_does_not_stop_the_page(chatbot, page):
    """JSON can hold it, the page's answer to the browser cannot: the refusal was never shown."""
    shown(chatbot, "a\ud800b").encode()
    assert shown(chatbot, "a\ud800b") == "a?b"
    (refusal,) = page.fn("a\ud800b", [], 0, 4, 0.9, 0, 1)
    assert refusal == "⚠️ Not answered: not text that UTF-8 can hold (character 1)"


def test_the_page_renders_neither_markdown_nor_latex(page):
    import gradio

    (chatbot,) = [each for each in page.blocks.values() if isinstance(each, gradio.Chatbot)]
    assert chatbot.render_markdown is False
    assert chatbot.latex_delimiters == []
    assert chatbot.sanitize_html, "a second wall"


def test_a_refusal_is_shown_letter_for_letter(page, chatbot, chat, monkeypatch):
    """A template's own words go into it."""
    monkeypatch.setattr(chat.tokenizer, "chat_template", "{{ raise_exception('<img src=x> $$y$$') }}")
    (refusal,) = page.fn("x", [], 0, 4, 0.9, 0, 1)
    assert "<img src=x> $$y$$" in refusal
    assert not TAG.search(shown(chatbot, refusal, "assistant"))


@pytest.mark.parametrize(
    "name", [*MARKUP, "a_b*c*[x](y)`z`", "org/model-v1.0_x", "模型", "1. x", "~~x~~ |a|"]
)
def test_a_models_name_is_no_markup(name):
    """A folder may have any name, and the page writes it into Markdown and HTML."""
    from chat_page import as_text, make_page

    assert html.unescape(as_text(name)) == name
    assert re.fullmatch(r"(\w| |&#\d+;)*", as_text(name))

    class Named:
        device, num_parameters, max_positions = "cpu", 1, 64

    if "<img" in name:
        chat = Named()
        chat.name = name
        config = json.dumps(make_page(chat).get_config_file(), default=str)
        assert "<img" not in config
        assert "&#60;img" in config


def test_examples_are_no_markup():
    from chat_page import EXAMPLES

    for label, message in EXAMPLES.items():
        assert not re.search(r"[<>&$*`]", label + message)


def test_copied_text_is_what_was_said():
    """The script's expression is the inverse of what the page is given."""
    from chat_page import COPIES_WHAT_WAS_SAID

    (pattern,) = re.findall(r"replace\(/(.*)/g", COPIES_WHAT_WAS_SAID)
    plain = json.loads(re.search(r"plain = (\{.*\});", COPIES_WHAT_WAS_SAID).group(1))
    for text in MARKUP:
        escaped = html.escape(text, quote=False)
        assert re.sub(pattern, lambda found: plain[found.group()], escaped) == text
