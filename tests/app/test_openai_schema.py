"""Every value that OpenAI's and TGI's own schemas allow is taken, or refused by its name and not by another."""

import json

import pytest

USER = {"role": "user", "content": "def add(left, right):"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
# Optional fields of the chat and text completions, as the openai package lists them.
CHAT_FIELDS = [
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs", "max_completion_tokens",
    "max_tokens", "metadata", "modalities", "model", "moderation", "n", "parallel_tool_calls", "prediction",
    "presence_penalty", "prompt_cache_key", "prompt_cache_retention", "reasoning_effort", "response_format",
    "safety_identifier", "seed", "service_tier", "stop", "store", "stream", "stream_options", "temperature",
    "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
]  # fmt: skip
TEXT_FIELDS = [
    "best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "max_tokens", "model", "n", "presence_penalty",
    "prompt", "seed", "stop", "stream", "stream_options", "suffix", "temperature", "top_p", "user",
]  # fmt: skip
TGI_FIELDS = [
    "adapter_id", "best_of", "decoder_input_details", "details", "do_sample", "frequency_penalty", "grammar",
    "max_new_tokens", "repetition_penalty", "return_full_text", "seed", "stop", "temperature", "top_k",
    "top_n_tokens", "top_p", "truncate", "typical_p", "watermark",
]  # fmt: skip
NOTHING_ASKED = [
    {"stop": []}, {"stop": ""}, {"stop": ["never said"]}, {"n": 1}, {"logprobs": False}, {"seed": 0}, {"user": "ada"},
    {"metadata": {"a": "b"}}, {"store": True}, {"stream_options": {"include_usage": None}}, {"stream_options": {}},
    {"stream_options": {"include_usage": False, "include_obfuscation": False}}, {"logit_bias": {}}, {"tools": []},
    {"tool_choice": "none"}, {"tool_choice": "auto"}, {"response_format": {"type": "text"}}, {"service_tier": "auto"},
    {"modalities": ["text"]}, {"presence_penalty": 0.0}, {"frequency_penalty": 0}, {"parallel_tool_calls": True},
    {"reasoning_effort": "none"}, {"verbosity": "medium"}, {"prediction": {"type": "content", "content": "x"}},
    {"top_logprobs": 0}, {"safety_identifier": "a"}, {"prompt_cache_key": "a"}, {"max_completion_tokens": 1},
    {"top_k": -1}, {"temperature": 0}, {"temperature": 2}, {"top_p": 1},
]  # fmt: skip
NOT_HERE = [
    {"n": 2}, {"logprobs": True}, {"top_logprobs": 3}, {"tools": [CALL]}, {"tool_choice": "required"},
    {"tool_choice": {"type": "function", "function": {"name": "add"}}}, {"functions": [{"name": "add"}]},
    {"response_format": {"type": "json_object"}}, {"logit_bias": {"5": 10}}, {"presence_penalty": -2},
    {"reasoning_effort": "high"}, {"verbosity": "low"}, {"modalities": ["text", "audio"]}, {"web_search_options": {}},
    {"audio": {"voice": "alloy", "format": "wav"}}, {"frequency_penalty": 0.5}, {"moderation": {}},
]  # fmt: skip


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr("sampling.MAX_NEW_TOKENS", 3)


def chat_of(client, messages=(USER,), **fields):
    return client.post("/v1/chat/completions", json={"messages": list(messages), **fields})


def message_of(answer):
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["message"]


@pytest.mark.parametrize("field", CHAT_FIELDS)
def test_null_for_a_chats_field_is_not_said(client, field):
    assert chat_of(client, **{field: None}).status_code == 200


@pytest.mark.parametrize("field", TEXT_FIELDS)
def test_null_for_a_texts_field_is_not_said(client, field):
    answer = client.post("/v1/completions", json={"prompt": "def", field: None})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("field", TGI_FIELDS)
def test_null_for_a_field_of_tgi_is_not_said(client, field):
    answer = client.post("/", json={"inputs": "def", "stream": None, "parameters": {field: None}})
    assert answer.status_code == 200, answer.text


def test_every_field_null_at_once(client):
    assert chat_of(client, **dict.fromkeys(CHAT_FIELDS)).status_code == 200
    assert client.post("/v1/completions", json=dict.fromkeys(TEXT_FIELDS)).status_code == 200
    body = {"inputs": "def", "parameters": dict.fromkeys(TGI_FIELDS), "stream": None}
    assert client.post("/", json=body).status_code == 200
    assert client.post("/", json={"inputs": "def", "parameters": None}).status_code == 200
    assert client.post("/", json={"inputs": "def"}).status_code == 200


def test_a_text_without_a_prompt_begins_a_document(client):
    for body in ({}, {"prompt": None}):
        answer = client.post("/v1/completions", json={**body, "max_tokens": 1})
        assert answer.json()["usage"]["prompt_tokens"] == 1


@pytest.mark.parametrize("fields", NOTHING_ASKED, ids=json.dumps)
def test_what_asks_for_nothing_is_taken(client, fields):
    answer = chat_of(client, **fields)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("fields", NOT_HERE, ids=json.dumps)
def test_what_this_server_lacks_is_refused_by_its_name(client, fields):
    (field,) = fields
    assert message_of(chat_of(client, **fields)) == f"{field}: not supported by this server"


@pytest.mark.parametrize(
    "turn",
    [{"content": "x", "tool_calls": None, "function_call": None, "refusal": None, "audio": None, "annotations": []},
     {"content": "x", "tool_calls": []}, {"content": None, "refusal": "I will not."}, {"content": ""},
     {"content": [{"type": "text", "text": "x"}, {"type": "refusal", "refusal": "y"}]},
     {"content": "x", "name": "ada"}],
    ids=json.dumps,
)  # fmt: skip
def test_an_answer_sent_back_as_clients_have_it(client, turn):
    answer = chat_of(client, [USER, {"role": "assistant", **turn}, USER])
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, "messages.1.tool_calls: not supported"),
        ({"role": "assistant", "tool_calls": [CALL]}, "messages.1.tool_calls: not supported"),
        ({"role": "assistant", "content": "x", "function_call": {"name": "a", "arguments": ""}},
         "messages.1.function_call: not supported"),
        ({"role": "tool", "tool_call_id": "call_1", "content": "5"}, "messages.1.role: tool: "),
        ({"role": "function", "name": "add", "content": None}, "messages.1.role: function: "),
        ({"role": "assistant", "content": None}, "messages.1.content: expected text"),
        ({"role": "user"}, "messages.1.content: expected text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y"}}]},
         "messages.1.content"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "messages.1.content"),
    ],
)  # fmt: skip
def test_a_turn_that_is_no_text_is_refused_by_its_name(client, turn, message):
    said = message_of(chat_of(client, [USER, turn, USER]))
    assert said.startswith(message)
    assert "tool_call" not in said or "tool_call" in message


def events(answer):
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_an_answer_has_every_field_that_the_schema_requires(client):
    choice = chat_of(client).json()["choices"][0]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert set(choice["message"]) == {"role", "content", "refusal"}
    *chunks, usage = events(chat_of(client, stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert not any("usage" in chunk for chunk in events(chat_of(client, stream=True)))


@pytest.mark.parametrize("failure", [RuntimeError, MemoryError])
def test_a_failure_is_told_in_each_apis_words(client, chat, monkeypatch, failure):
    def fail(*arguments, **keywords):
        raise failure("cannot open /home/ada/secret.txt")

    monkeypatch.setattr(chat.model, "generate", fail)
    status, kind = (503, "overloaded") if failure is MemoryError else (500, "server_error")
    for stream in (False, True):
        answer = chat_of(client, stream=stream)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == kind
        assert (answer.headers.get("retry-after") is not None) == (status == 503)
        answer = client.post("/", json={"inputs": "def", "stream": stream})
        assert answer.status_code == status
        assert set(answer.json()) == {"error", "error_type"}
        assert "ada" not in answer.text


def test_a_failure_in_a_stream_is_its_last_event(client, chat, monkeypatch):
    generate = chat.model.generate

    def fail_at_the_end(*arguments, **keywords):
        generate(*arguments, **keywords)
        raise RuntimeError("cannot open /home/ada/secret.txt")

    monkeypatch.setattr(chat.model, "generate", fail_at_the_end)
    answer = chat_of(client, stream=True)
    last = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data: "))
    assert last["error"]["type"] == "server_error"
    assert last["error"]["message"].startswith("the model failed on this request (RuntimeError)")
    answer = client.post("/", json={"inputs": "def", "stream": True})
    last = json.loads(answer.text.strip().splitlines()[-1].removeprefix("data:"))
    assert last["error_type"] == "generation"
    assert "ada" not in answer.text
