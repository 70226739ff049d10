"""A number of another type than the one wanted: from the page's sliders, from JSON, from a setting."""

import json
import math

import pytest

CHAT = [{"role": "user", "content": "def add(left, right):"}]
ROUTES = {
    "/v1/chat/completions": lambda values: {"messages": CHAT, "max_tokens": 2, **values},
    "/v1/completions": lambda values: {"prompt": "def", "max_tokens": 2, **values},
    "/generate": lambda values: {"prompt": "def", "max_new_tokens": 2, **values},
    "/": lambda values: {"inputs": "def", "parameters": {"max_new_tokens": 2, **values}},
}
LENGTH = {"/v1/chat/completions": "max_tokens", "/v1/completions": "max_tokens"}
REAL = ["temperature", "top_p", "repetition_penalty"]
WHOLE = ["top_k", "seed", "max_new_tokens"]
NO_NUMBERS = [True, False, "1", "hot", math.nan, math.inf, -math.inf, [1], {}]


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr("sampling.MAX_NEW_TOKENS", 3)


def names(path):
    """The numbers that a route takes, by Sampling's names and by its own."""
    for name in [*REAL, *WHOLE]:
        if (path, name) != ("/generate", "seed"):
            yield name, LENGTH.get(path, name) if name == "max_new_tokens" else name


FIELDS = [(path, *pair) for path in ROUTES for pair in names(path)]


def send(client, path, values):
    return client.post(
        path, content=json.dumps(ROUTES[path](values)), headers={"Content-Type": "application/json"}
    )


@pytest.mark.parametrize(("path", "name", "field"), FIELDS)
def test_ints_and_floats_stand_for_each_other(client, path, name, field):
    for value in (1, 1.0):
        answer = send(client, path, {field: value})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("path", "name", "field"), FIELDS)
def test_null_is_not_said(client, path, name, field):
    assert send(client, path, {field: None}).status_code == 200


@pytest.mark.parametrize(("path", "name", "field"), FIELDS)
def test_what_is_no_number_is_refused_by_its_name(client, path, name, field):
    values = [*NO_NUMBERS, *([] if name in REAL else [1.5])]
    for value in values:
        answer = send(client, path, {field: value})
        assert answer.status_code == (422 if path == "/" else 400), (value, answer.text)
        assert f"{field}: expected" in answer.text, (value, answer.text)


@pytest.mark.parametrize(("path", "name", "field"), FIELDS)
def test_huge_numbers_are_clamped_or_refused(client, path, name, field):
    for value in (10**400, 1e300, -(10**400), -1e300):
        answer = send(client, path, {field: value})
        clamped = value > 0 and name in ("max_new_tokens", "top_k")
        assert answer.status_code == (200 if clamped else 422 if path == "/" else 400), (value, answer.text)
        assert clamped or f"{field}: " in answer.text


@pytest.mark.parametrize("path", ROUTES)
def test_more_digits_than_python_reads_are_refused(client, path):
    body = json.dumps(ROUTES[path]({"temperature": 7})).replace("7", "7" * 5000)
    answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert len(answer.text) < 300


def test_signed_and_unsigned_seeds(client):
    for seed in (-(2**63), -1, 2**64 - 1):
        assert send(client, "/v1/chat/completions", {"seed": seed}).status_code == 200
    answer = send(client, "/v1/chat/completions", {"seed": 2**64})
    assert answer.json()["error"]["message"] == "seed: expected -2^63 to 2^64 - 1"


@pytest.mark.parametrize("stream", [1, "yes", "true", 0, []])
def test_a_truth_value_is_true_or_false(client, stream):
    for path in ("/v1/chat/completions", "/v1/completions", "/"):
        answer = client.post(path, json={**ROUTES[path]({}), "stream": stream})
        assert answer.status_code == (422 if path == "/" else 400)
        assert "stream: expected true or false" in answer.text


@pytest.mark.parametrize("field", ["n", "best_of", "presence_penalty", "logprobs", "top_logprobs", "echo"])
def test_a_truth_value_is_no_number_that_asks_for_nothing(client, field):
    """True equals 1 and false equals 0: ``n: true`` was taken for one answer, ``logprobs: 0`` for none."""
    wrong = 0 if field in ("logprobs", "echo") else field in ("n", "best_of")
    answer = client.post("/v1/completions", json={"prompt": "def", "max_tokens": 1, field: wrong})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == f"{field}: not supported by this server"


def test_token_ids_are_whole(client):
    for prompt in ([5, 6.0], [[5.0]]):
        answer = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1})
        assert answer.status_code == 200, answer.text
    for prompt in ([5.5], [True], [[5, None]], [10**30]):
        answer = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 1})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith("prompt"), answer.text


def on_the_page(page, temperature=0.0, tokens=4, top_p=0.9, top_k=0, penalty=1.0, message="def"):
    return list(page.fn(message, [], temperature, tokens, top_p, top_k, penalty))


@pytest.mark.parametrize(
    "values",
    [{"temperature": 2}, {"penalty": 2}, {"top_p": 1}, {"temperature": 1, "top_p": 1, "penalty": 1, "top_k": 5.0},
     {"tokens": 4.0}, {"tokens": 10**30}, {"top_k": 1e300}],
)  # fmt: skip
def test_a_slider_at_a_whole_number(page, values):
    """``temperature=2`` once raised in transformers, which wants a float, and left the page dead."""
    assert "⚠" not in on_the_page(page, **values)[-1]


@pytest.mark.parametrize("value", [None, "", "hot", True, math.nan, math.inf, 9, -1])
@pytest.mark.parametrize("name", ["temperature", "top_p", "penalty"])
def test_a_slider_that_is_no_number_is_one_line(page, name, value):
    """An emptied number field sends null, a typed one what is out of the slider's range."""
    (said,) = on_the_page(page, **{name: value})
    field = "repetition_penalty" if name == "penalty" else name
    assert said.startswith(f"⚠️ Not answered: {field}: expected ")


def test_the_sliders_own_check_does_not_raise(page):
    """It did, before the answer's function was asked, and the page lost its send button."""
    import gradio

    sliders = [each for each in page.blocks.values() if isinstance(each, gr := gradio.Slider) and gr]
    assert len(sliders) == 5
    for slider in sliders:
        assert slider.preprocess(9999) == 9999
        assert slider.preprocess(None) is None


@pytest.mark.parametrize("failure", [TypeError, RuntimeError, KeyError, ZeroDivisionError, MemoryError])
def test_any_failure_is_one_line_on_the_page(page, chat, monkeypatch, failure, caplog):
    def fail(*arguments, **keywords):
        raise failure("cannot open /home/ada/secret.txt")

    monkeypatch.setattr(chat.model, "generate", fail)
    (said,) = on_the_page(page)
    assert said.startswith("⚠️ Not answered: ")
    assert "ada" not in said
    assert "\n" not in said
    assert "a generation failed" in caplog.text
    monkeypatch.undo()
    assert "⚠" not in on_the_page(page)[-1], "the next message is answered"


def test_a_failure_before_the_generation_is_one_line_on_the_page(page, chat, monkeypatch):
    monkeypatch.setattr(chat, "chat_ids", lambda messages: 1 / 0)
    assert on_the_page(page) == [
        "⚠️ Not answered: this page failed (ZeroDivisionError); the server's log says where"
    ]
