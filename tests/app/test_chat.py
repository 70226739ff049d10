"""One generation at a time: what sampling means, where an answer ends, whose code runs, what the page sends."""

import json
import math
import threading
from itertools import pairwise

import pytest
import torch
from hypothesis import given, strategies

from tests.waits import wait_for

MESSAGES = [{"role": "user", "content": "def add(left, right):"}]


def answer(chat, **sampling):
    from sampling import Sampling

    generation = chat.generate(chat.chat_ids(MESSAGES), Sampling(**{"max_new_tokens": 24, **sampling}))
    return "".join(generation), generation


def test_sampling_settings_are_honoured(chat):
    greedy, _ = answer(chat, temperature=0)
    assert answer(chat, temperature=1.5, top_p=1e-6, seed=1)[0] == greedy
    assert answer(chat, temperature=1.5, top_p=1.0, top_k=1, seed=1)[0] == greedy
    free = {seed: answer(chat, temperature=1.5, top_p=1.0, seed=seed)[0] for seed in (1, 2)}
    assert free[1] != greedy
    assert free[1] != free[2]
    assert answer(chat, temperature=1.5, top_p=1.0, seed=1)[0] == free[1]
    assert answer(chat, temperature=0, repetition_penalty=2.0)[0] != greedy


def test_the_cache_is_used(chat, monkeypatch):
    widths = []
    forward = type(chat.model).forward

    def watched(self, input_ids=None, **kwargs):
        widths.append(input_ids.shape[1])
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(chat.model), "forward", watched)
    _, generation = answer(chat, temperature=0)
    assert widths[0] == generation.ids.shape[1]
    assert set(widths[1:]) == {1}


def test_how_an_answer_ended_is_told(chat, monkeypatch):
    _, cut = answer(chat, temperature=0)
    assert (cut.finish_reason, cut.num_tokens) == ("length", 24)
    monkeypatch.setattr(chat, "end_ids", list(range(320)))
    _, ended = answer(chat, temperature=0)
    assert (ended.finish_reason, ended.num_tokens) == ("stop", 1)


def test_time_is_bounded(chat, monkeypatch):
    monkeypatch.setattr("generation.MAX_GENERATION_SECONDS", 0)
    _, generation = answer(chat, temperature=0)
    assert (generation.finish_reason, generation.num_tokens) == ("length", 1)


def test_a_reader_who_leaves_gives_the_place_back(chat):
    from sampling import Sampling

    before = threading.active_count()
    for _ in range(20):  # more than there are places
        pieces = iter(chat.generate(chat.chat_ids(MESSAGES), Sampling(100, temperature=0)))
        next(pieces)
        pieces.close()
    assert threading.active_count() == before
    assert not chat.one_at_a_time.locked()


def test_who_waits_too_long_is_told(chat, monkeypatch):
    from sampling import BusyError

    monkeypatch.setattr("generation.MAX_WAITING_SECONDS", 0.01)
    with chat.one_at_a_time, pytest.raises(BusyError, match="take too long"):
        answer(chat)
    assert answer(chat)[0]


def test_who_comes_first_is_answered_first(chat, monkeypatch):
    order, threads = [], []
    with chat.one_at_a_time:
        for number in range(6):
            threads.append(
                threading.Thread(
                    target=lambda number=number: (answer(chat, max_new_tokens=2), order.append(number))
                )
            )
            threads[-1].start()
            wait_for(lambda number=number: len(chat.line) == number + 1)
    for thread in threads:
        thread.join()
    assert order == sorted(order)
    assert not chat.line


@pytest.mark.slow
def test_a_full_line_is_told_on_the_page(page, chat):
    """Gradio's queue told nothing: it took the send button of the page that came too late."""
    from chat_model import MAX_REQUESTS
    from chat_page import MAX_WAITING

    for _ in range(MAX_REQUESTS):
        chat.places.acquire()
    try:
        (said,) = page.fn("hello", [], 0, 4, 0.9, 0, 1)
    finally:
        for _ in range(MAX_REQUESTS):
            chat.places.release()
    assert said == "⚠️ Not answered: too many requests are waiting; try again in a moment"
    assert page._queue.max_size == MAX_WAITING > 2 * MAX_REQUESTS
    assert page._queue.default_concurrency_limit is None


@pytest.mark.parametrize("field", ["max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty"])
@pytest.mark.parametrize("value", [math.nan, math.inf, None, "1", True])
def test_no_number_is_refused(field, value):
    from sampling import RequestError, Sampling

    with pytest.raises(RequestError, match=f"{field}: expected a finite number"):
        Sampling(**{field: value}).checked()


def test_lengths_are_clamped():
    from sampling import MAX_NEW_TOKENS, Sampling

    assert Sampling(10**9).checked().max_new_tokens == MAX_NEW_TOKENS
    assert Sampling(-5).checked().max_new_tokens == 1


@given(
    text=strategies.text("abcd", max_size=30),
    stops=strategies.lists(strategies.text("abcd", min_size=1, max_size=5), max_size=4),
    cuts=strategies.sets(strategies.integers(0, 30)),
)
def test_what_comes_before_a_stop_is_all_that_is_said(text, stops, cuts):
    from stop_strings import before_stop

    places = [0, *sorted(place for place in cuts if place < len(text)), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(places)]
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    said = list(before_stop(pieces, stops))
    assert "".join(said) == text[: min(ends, default=len(text))]
    assert all(said)


def test_nothing_is_held_back_that_is_no_beginning_of_a_stop():
    from stop_strings import before_stop

    assert next(before_stop(iter(["abc", "d"]), ["xy", "cab"])) == "ab"
    assert next(before_stop(iter(["abc", "d"]), [])) == "abc"


def test_a_stop_of_many_bytes_is_found(chat):
    """Of the tokens that complete it, each may be a byte."""
    from stop_strings import StopStrings

    prompt, text = [5] * 7, "sum of é中🙂é中🙂 both"
    ids = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    found = StopStrings(chat.tokenizer, ["中🙂é中🙂"], len(prompt))
    ends = [
        end
        for end in range(1, len(ids) + 1)
        if found(torch.tensor([[*prompt, *ids[:end]]]), torch.empty(0)).item()
    ]
    assert chat.tokenizer.decode(ids[: ends[0]]).endswith("中🙂é中🙂")


def test_an_answer_closed_by_the_collector_in_its_own_thread(chat, monkeypatch):
    """Joining oneself raises; the place must be given back all the same."""
    from sampling import Sampling

    pieces = iter(chat.generate(chat.chat_ids(MESSAGES), Sampling(200, temperature=0)))
    next(pieces)
    worker = next(thread for thread in threading.enumerate() if "work" in thread.name)
    monkeypatch.setattr(threading, "current_thread", lambda: worker)
    pieces.close()
    monkeypatch.undo()
    worker.join()
    assert not chat.one_at_a_time.locked()


def test_credentials_guard_every_route(chat):
    from api import make_api
    from fastapi.testclient import TestClient

    client = TestClient(make_api(chat, ("ada", "canary-password")))
    body = {"messages": MESSAGES, "max_tokens": 2}
    for path in ("/health", "/v1/models"):
        assert client.get(path).status_code == 401
    for path in ("/docs", "/openapi.json"):
        assert client.get(path).status_code == 404
    for path in ("/generate", "/", "/v1/completions", "/v1/elsewhere"):
        assert client.post(path, json={"prompt": "x", "inputs": "x"}).status_code == 401
    for header in ("Bearer wrong", "Basic YTpi", "Bearer", "Digest canary-password"):
        wrong = client.post("/v1/chat/completions", json=body, headers={"Authorization": header})
        assert wrong.status_code == 401
    right = {"Authorization": "Bearer canary-password"}
    assert client.post("/v1/chat/completions", json=body, headers=right).status_code == 200
    assert client.get("/health", auth=("ada", "canary-password")).status_code == 200


def test_an_error_tells_no_path(chat, monkeypatch):
    from api import make_api
    from fastapi.testclient import TestClient

    def fail(*arguments, **keywords):
        raise RuntimeError("cannot open /home/ada/secret.txt")

    monkeypatch.setattr(chat.model, "generate", fail)
    client = TestClient(make_api(chat), raise_server_exceptions=False)
    for body in ({"messages": MESSAGES}, {"messages": MESSAGES, "stream": True}):
        reply = client.post("/v1/chat/completions", json=body)
        assert reply.status_code == 500
        assert "ada" not in reply.text


class Listener:
    """In the place of a model for the page: keeps what it was asked, and forgets after ``room`` messages."""

    name, device, num_parameters, max_positions = "tiny", "cpu", 1, 64

    def __init__(self, room=99):
        self.room, self.heard = room, None

    def chat_ids(self, messages):
        from sampling import TooLongError

        if len(messages) > self.room:
            raise TooLongError("messages: too many")
        self.heard = messages
        return messages

    def generate(self, ids, sampling):
        self.sampling = sampling
        return ["one ", "two"]


def test_the_page_sends_history_and_settings():
    from chat_page import NOT_ANSWERED, NOTHING_SAID, make_page

    listener = Listener()
    history = [
        {"role": "user", "content": [{"type": "text", "text": "first"}]},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": "far too long"},
        {"role": "assistant", "content": NOT_ANSWERED + "messages: too many"},
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": NOTHING_SAID},
    ]
    pieces = list(make_page(listener).fn("third", history, 0.5, 7, 0.8, 3, 1.1))
    assert pieces == ["one ", "one two"]
    assert [message["content"] for message in listener.heard] == ["first", "answer", "second", "", "third"]
    sampling = listener.sampling
    assert (sampling.temperature, sampling.max_new_tokens, sampling.top_p) == (0.5, 7, 0.8)
    assert (sampling.top_k, sampling.repetition_penalty) == (3, 1.1)


def test_the_oldest_turns_are_forgotten_first():
    from chat_page import recent_ids
    from sampling import TooLongError

    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    messages = [{"role": role, "content": str(place)} for place, role in enumerate(roles)]
    assert recent_ids(Listener(6), messages) == (messages, 0)
    assert recent_ids(Listener(4), messages) == (messages[3:], 3)
    assert recent_ids(Listener(1), messages) == (messages[5:], 5)
    with pytest.raises(TooLongError):
        recent_ids(Listener(0), messages)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("x" * 60_000, "at most 50000 characters"),
        ("{% for a in range(99999) %}{% for b in range(40) %}{% endfor %}{% endfor %}", "no result after"),
        ("{{ 'x' * 1000000 }}", "1,000,000 characters"),
        ("{{ messages.__class__.__mro__ }}", "chat template: "),
        ("{% for %}", "chat template: "),
    ],
    ids=["huge", "endless", "long", "escape", "broken"],
)
def test_a_hostile_chat_template_is_refused(chat, monkeypatch, template, message):
    from chat_model import probe_template
    from sampling import RequestError

    monkeypatch.setattr("chat_model.TEMPLATE_SECONDS", 0.05 if "range" in template else 5)
    monkeypatch.setattr(chat.tokenizer, "chat_template", template)
    with pytest.raises(RequestError, match=message):
        probe_template(chat.tokenizer)


def test_foreign_code_never_runs(chat, tmp_path):
    from chat_model import ChatModel
    from sampling import RequestError

    chat.tokenizer.save_pretrained(tmp_path)
    marker = tmp_path / "ran"
    config = {
        "model_type": "other",
        "auto_map": {"AutoConfig": "other.Config", "AutoModelForCausalLM": "other.M"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "other.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    with pytest.raises(ValueError, match="custom code"):
        ChatModel(str(tmp_path))
    with pytest.raises(RequestError, match="for Foundry checkpoints only"):
        ChatModel(str(tmp_path), trust_remote_code=True)
    assert not marker.exists()


def test_no_checkpoint_is_refused(tmp_path):
    from chat_model import ChatModel

    with pytest.raises((OSError, ValueError)):
        ChatModel(str(tmp_path))


def test_a_foundry_checkpoint_without_the_package_is_explained(chat_checkpoint, monkeypatch):
    import sys

    from chat_model import ChatModel
    from sampling import RequestError

    monkeypatch.setitem(sys.modules, "modeling_foundry", None)
    with pytest.raises(RequestError, match=r"export it as a stock model with recipes/publish\.py"):
        ChatModel(str(chat_checkpoint))


def test_a_model_without_a_limit_of_positions():
    """A state-space model's configuration names none; that was an AttributeError at the start."""
    from chat_model import _max_positions
    from transformers import GPT2Config, MambaConfig

    assert _max_positions(GPT2Config(n_positions=77)) == 77
    assert _max_positions(MambaConfig()) > 50_000
