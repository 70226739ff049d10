"""The server as its users meet it: browser page, Hugging Face's client, plain HTTP, and people who mean harm."""

import contextlib
import http.client
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest
from safetensors.torch import load_file, save_file

from tests import warm_start
from tests.app.conftest import start
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow
CHAT = [{"role": "user", "content": "def add(left, right):"}]


def post(url, path, body, timeout=600, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before the body was read
            connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        text = answer.read().decode()
        return answer.status, json.loads(text) if answer.status == 200 else text
    finally:
        connection.close()


def get(url, path, **headers):
    """Status and text; the path goes out as it is, dots and all."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=600)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def test_health(server):
    status, text = get(server, "/health")
    health = json.loads(text)
    assert status == 200
    assert health["status"] == "ok"
    assert health["device"] in ("cpu", "cuda")
    assert health["checkpoint"] == "tiny-chat"
    assert 0 < health["parameters_billions"] < 0.001


def test_hugging_faces_own_client(server):
    """In a process of its own: HF_HUB_OFFLINE blocks the client even on this machine."""
    code = (
        "from huggingface_hub import InferenceClient\n"
        f"client = InferenceClient(base_url={server!r}, api_key='x')\n"
        f"messages = {CHAT!r}\n"
        "whole = client.chat_completion(messages, max_tokens=12, temperature=0)\n"
        "chunks = list(client.chat_completion(messages, max_tokens=12, temperature=0, stream=True,\n"
        "    stream_options={'include_usage': True}))\n"
        "parts = [c.choices[0].delta.content or '' for c in chunks if c.choices]\n"
        "assert len(parts) > 2, parts\n"
        "assert ''.join(parts) == whole.choices[0].message.content, (parts, whole)\n"
        "assert whole.choices[0].finish_reason == 'length', 'an untrained model is cut, and that is said'\n"
        "assert whole.usage.prompt_tokens > 5 and whole.usage.completion_tokens == 12\n"
        "assert chunks[-1].usage.completion_tokens == 12, chunks[-1]\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr


TEXT_GENERATION = """
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError
client = InferenceClient(model=URL)
given = {"max_new_tokens": 12}
whole = client.text_generation("def add", **given, details=True)
assert whole.details.finish_reason == "length" and whole.details.generated_tokens == 12, whole
assert len(whole.details.tokens) == 12 and all(token.logprob is None for token in whole.details.tokens)
assert "".join(client.text_generation("def add", **given, stream=True)) == whole.generated_text
events = list(client.text_generation("def add", **given, stream=True, details=True))
assert events[-1].generated_text == whole.generated_text
assert events[-1].details.generated_tokens == 12 and events[0].details is None
assert client.text_generation("def add", **given, return_full_text=True) == "def add" + whole.generated_text
stop = whole.generated_text[2:5]
cut = client.text_generation("def add", **given, stop=[stop], details=True)
assert cut.generated_text == whole.generated_text.partition(stop)[0], (cut, whole)
assert cut.details.finish_reason == "stop_sequence"
drawn = [client.text_generation("def add", **given, do_sample=True, temperature=1.5, seed=seed) for seed in (7, 7, 8)]
assert drawn[0] == drawn[1] != drawn[2], drawn
last = client.text_generation("left def add", **given, truncate=1, details=True)
assert last.details.input_length == 1
for wrong in (
    {"best_of": 2}, {"max_new_tokens": 0}, {"temperature": 9.0}, {"truncate": 0},
    {"grammar": {"type": "json", "value": {}}},
):
    try:
        client.text_generation("def add", **given | wrong)
    except ValidationError as error:
        assert str(error).startswith(next(iter(wrong)) + ": "), error
    else:
        raise AssertionError(wrong)
"""


def test_hugging_faces_text_generation(server):
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    code = TEXT_GENERATION.replace("URL", repr(server))
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr


def events_of(text):
    return [
        json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")
    ]


def test_stop_strings_end_an_answer_and_stay_out_of_it(server):
    body = {"messages": CHAT, "max_tokens": 30, "temperature": 0}
    _, whole = post(server, "/v1/chat/completions", body)
    text = whole["choices"][0]["message"]["content"]
    stop = text[4:7]
    _, cut = post(server, "/v1/chat/completions", body | {"stop": [stop, "never said"]})
    choice = cut["choices"][0]
    assert choice["message"]["content"] == text.partition(stop)[0]
    assert choice["finish_reason"] == "stop"
    assert cut["usage"]["completion_tokens"] < 30
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=60)
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(body | {"stop": stop, "stream": True}),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    events = events_of(connection.getresponse().read().decode())
    streamed = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    assert streamed == choice["message"]["content"]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_models(server):
    status, text = get(server, "/v1/models")
    assert status == 200
    assert json.loads(text)["data"][0]["id"] == "tiny-chat"
    assert json.loads(get(server, "/v1/models/tiny-chat")[1]) == json.loads(text)["data"][0]
    for path in ("/v1/models/gpt-9", "/v1/embeddings"):
        status, text = get(server, path)
        assert status == 404
        assert json.loads(text)["error"]["message"]


def test_plain_completions_and_the_developers_role(server):
    body = {"prompt": "def add", "max_tokens": 6, "temperature": 0}
    _, ours = post(server, "/generate", {"prompt": "def add", "max_new_tokens": 6, "temperature": 0})
    _, answer = post(server, "/v1/completions", body)
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == ours["generated_text"]
    assert answer["usage"]["completion_tokens"] == 6
    answers = [
        post(server, "/v1/chat/completions", {
            "messages": [{"role": role, "content": "Be brief."}, *CHAT], "max_tokens": 6, "temperature": 0,
        })[1]["choices"]
        for role in ("system", "developer")
    ]  # fmt: skip
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": CHAT, "stream": True, "max_tokens": 200}),
        ("/", {"inputs": "def", "stream": True, "parameters": {"max_new_tokens": 200}}),
    ],
)
def test_clients_that_leave_at_once_block_nobody(server, path, body):
    """The answer of one of them was once never closed, and every later request waited for it and got 429."""
    data = json.dumps(body).encode()
    for seconds in (0, 0, 0.01, 0.05, 0.2, 0):
        connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=600)
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        time.sleep(seconds)
        connection.close()
    status, answer = post(server, "/generate", {"prompt": "def", "max_new_tokens": 3})
    assert status == 200, answer


def test_the_page_streams_and_remembers(server):
    from gradio_client import Client

    client = Client(server, verbose=False)
    outputs = []
    for _ in range(2):
        job = client.submit("def add(left, right):", 0.0, 16, 0.9, 0, 1.0, api_name="/chat")
        final = job.result()
        pieces = job.outputs()
        assert len(pieces) > 1
        assert all(isinstance(piece, str) and final.startswith(piece) for piece in pieces)
        outputs.append(final)
    assert outputs[0] != outputs[1], "the same message after a first turn is another prompt"
    again = Client(server, verbose=False).predict(
        "def add(left, right):", 0.0, 16, 0.9, 0, 1.0, api_name="/chat"
    )
    assert again == outputs[0], "another visitor starts anew"
    refused = client.predict("word " * 2000, 0.0, 16, 0.9, 0, 1.0, api_name="/chat")
    assert "Not answered" in refused
    assert "this model holds 256" in refused


def test_the_page_asks_no_other_site(server):
    for path in ("/", "/docs"):
        _, page = get(server, path)
        for host in ("googleapis", "gstatic", "cdnjs", "jsdelivr", "huggingface.co"):
            assert host not in page


def test_plain_generation_and_its_bounds(server):
    status, answer = post(server, "/generate", {"prompt": "def add", "max_new_tokens": 5, "temperature": 0})
    assert status == 200
    assert answer["prompt"] == "def add"
    assert answer["full_response"] == "def add" + answer["generated_text"]
    assert answer["tokens_generated"] == 5
    status, answer = post(server, "/generate", {"prompt": "def", "max_new_tokens": 10**9, "temperature": 0})
    assert status == 200, "clamped to what the model can hold"
    assert 200 < answer["tokens_generated"] < 256


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/generate", {"prompt": "x" * 1_000_000}, "prompt: at most 50000 characters"),
        ("/generate", {"prompt": "word " * 2000}, "this model holds 256"),
        ("/generate", {"prompt": ""}, "prompt: expected some text"),
        ("/generate", {"prompt": "x", "temperature": 9}, "temperature: expected 0 to 2"),
        ("/generate", {"prompt": "x", "temperature": math.nan}, "temperature: expected a finite number"),
        ("/generate", {"prompt": "x", "temperature": math.inf}, "temperature: expected a finite number"),
        ("/generate", {"prompt": "x", "max_new_tokens": math.nan}, "max_new_tokens: "),
        ("/generate", {"prompt": "x", "top_p": 0}, "top_p: expected"),
        ("/generate", {"prompt": "x", "top_k": -1}, "top_k: expected"),
        ("/v1/chat/completions", {"messages": CHAT, "top_p": 7}, "top_p: expected"),
        ("/v1/chat/completions", {"messages": CHAT, "top_p": 7, "stream": True}, "top_p: expected"),
        ("/v1/chat/completions", {"messages": CHAT, "n": 2}, "n: not supported"),
        ("/v1/chat/completions", {"messages": CHAT, "stop": ["x"] * 5}, "stop: expected at most 4 strings"),
        ("/v1/chat/completions", {"messages": CHAT, "stop": "x" * 201}, "stop: expected at most 4 strings"),
        ("/v1/completions", {"prompt": "def", "echo": True}, "echo: not supported"),
        ("/v1/completions", {"prompt": "a\ud800"}, "prompt: not text that UTF-8 can hold (character 1)"),
        ("/v1/chat/completions", {"messages": [{**CHAT[0], "content": "\ud800"}]}, "messages: not text that"),
        ("/v1/chat/completions", {"messages": CHAT, "stop": "\ud800"}, "stop: not text that UTF-8 can hold"),
        ("/v1/completions", {"prompt": {}}, "prompt: Input should be a valid string"),
        ("/v1/completions", {"prompt": ["def", "left"]}, "prompt: one a request"),
        ("/v1/completions", {"prompt": []}, "prompt: expected text, or token ids from 0 to 319"),
        ("/v1/completions", {"prompt": [5, 320]}, "prompt: expected text, or token ids from 0 to 319"),
        ("/v1/completions", {"prompt": [[-1]]}, "prompt: expected text, or token ids from 0 to 319"),
        ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 0}, "max_tokens: Input should be greater"),
        ("/v1/chat/completions", {"messages": CHAT, "max_completion_tokens": -1}, "max_completion_tokens: "),
        (
            "/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type: Input should be 'text'",
        ),
        ("/v1/chat/completions", {"messages": [{**CHAT[0], "content": "x" * 999_999}]}, "messages: at most"),
        ("/v1/chat/completions", {"messages": [{**CHAT[0], "role": "root"}]}, "messages.0.role: "),
        ("/v1/chat/completions", {"messages": []}, "messages: "),
        ("/v1/chat/completions", b"{", "body: JSON decode error at character 1"),
        ("/v1/chat/completions", b"", "body: "),
        ("/v1/chat/completions", b"[" * 50_000, "There was an error parsing the body"),
        ("/v1/chat/completions", b"\xff", "There was an error parsing the body"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_words(server, path, body, message):
    status, text = post(server, path, body)
    assert status in (400, 422)
    assert json.loads(text)["error"]["message"].startswith(message) or message in text
    assert len(text) < 300, "what was sent is not repeated"


def test_a_body_that_is_not_said_to_be_json(server):
    """What curl sends without a header."""
    status, text = post(
        server, "/v1/completions", {"prompt": "x"}, **{"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert status == 400
    message = json.loads(text)["error"]["message"]
    assert message == "body: expected a JSON object, sent with Content-Type: application/json"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405), ("PUT", "/v1/completions", 405), ("DELETE", "/v1/models/a", 404),
        ("GET", "/v1/nothing", 404), ("HEAD", "/health", 200), ("HEAD", "/v1/models", 200),
    ],
)  # fmt: skip
def test_every_method_is_answered_as_openai_would(server, method, path, status):
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=600)
    connection.request(method, path)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    assert answer.status == status
    assert answer.getheader("Allow") == ("POST" if status == 405 else None)
    if method != "HEAD":
        assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}


def test_a_prompt_as_lm_eval_sends_it(server, chat):
    ids = chat.text_ids("def add")[0].tolist()
    answers = [
        post(server, "/v1/completions", {"prompt": prompt, "max_tokens": 6, "temperature": 0})[1]
        for prompt in ("def add", ["def add"], ids, [ids])
    ]
    assert [answer["choices"] for answer in answers] == 4 * [answers[0]["choices"]]
    assert answers[3]["usage"]["prompt_tokens"] == len(ids)


def test_a_chat_without_a_length_goes_on_to_its_end(server):
    _, answer = post(server, "/v1/chat/completions", {"messages": CHAT, "temperature": 0})
    assert answer["usage"]["total_tokens"] == 256, "an untrained model ends where its positions do"


def test_a_large_body_is_refused_unread(server):
    connection = http.client.HTTPConnection(urlsplit(server).netloc, timeout=600)
    connection.putrequest("POST", "/generate")
    connection.putheader("Content-Length", str(2**20 + 1))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413
    assert "at most 1048576 bytes" in answer.read().decode()
    connection.close()


def test_a_flood_is_bounded_and_the_server_lives(server):
    body = {"messages": CHAT, "max_tokens": 100, "temperature": 0}
    with ThreadPoolExecutor(50) as pool:
        answers = [pool.submit(post, server, "/v1/chat/completions", body) for _ in range(50)]
        time.sleep(0.3)
        start_seconds = time.monotonic()
        assert get(server, "/health")[0] == 200
        health_seconds = time.monotonic() - start_seconds
        codes = [answer.result()[0] for answer in answers]
        flood_seconds = time.monotonic() - start_seconds
    assert set(codes) == {200, 429}
    assert codes.count(200) >= 16, "the one that ran and those that waited"
    assert health_seconds < max(5, flood_seconds / 2), "the event loop is free while the model works"
    assert post(server, "/v1/chat/completions", body)[0] == 200, "every place was given back"


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../etc/passwd", "/file=/etc/passwd",
        "/gradio_api/file=%2Fetc%2Fpasswd", "/gradio_api/file=app.py", "/gradio_api/file=space.json",
        "/static/../../../../etc/passwd", "/assets/..%2f..%2f..%2froutes.py",
    ],
)  # fmt: skip
def test_no_file_is_served(server, path):
    status, text = get(server, path)
    assert status in (403, 404)
    assert "root:" not in text
    assert "import" not in text


def test_pages_of_other_sites_are_turned_away(server):
    host = urlsplit(server).netloc
    assert get(server, "/health", Origin=f"http://{host}")[0] == 200
    for headers in (
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}, {"Host": "["},
    ):  # fmt: skip
        assert get(server, "/health", **headers)[0] == 403, headers
        assert get(server, "/config", **headers)[0] == 403, headers
    body = {"prompt": "x", "max_new_tokens": 1}
    assert post(server, "/generate", body, Origin="http://evil.example")[0] == 403
    assert post(server, "/generate", b"{}", **{"Transfer-Encoding": "chunked"})[0] == 411
    assert post(server, "/gradio_api/upload", b"content")[0] == 403


def test_other_machines_need_credentials(chat_checkpoint):
    process, _ = start(chat_checkpoint, "--host", "0.0.0.0")
    output, _ = process.communicate()
    assert process.returncode == 2
    assert "set APP_USER and APP_PASSWORD first" in output
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "nope"], "error: --model nope: no such folder, and as a Hub repository: "),
        (["--model", "nope", "--host", "0.0.0.0"], "error: --host 0.0.0.0: lets other machines in"),
        ([], "error: --model: give a checkpoint folder or a Hub repository"),
        (
            ["--model", "nope", "--port", "80000"],
            "error: argument --port: expected 1 to 65535, found '80000'",
        ),
        (["--model", "nope", "--port", "http"], "error: argument --port: expected 1 to 65535, found 'http'"),
    ],
)
def test_what_cannot_be_served_is_one_line(words, message):
    done = warm_start.run([sys.executable, "app/app.py", *words], cwd=REPOSITORY)
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert message in last


def test_a_port_that_is_taken_is_one_line_before_the_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "app/app.py", "--model", "nope", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 2
    assert done.stderr == f"error: --host 127.0.0.1 --port {port}: Address already in use; give another\n"
    assert done.stdout == ""


def test_ctrl_c_ends_the_app_without_a_traceback(chat_checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "app/app.py", "--model", str(chat_checkpoint), "--port", str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where CI is a background job
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()  # its address: the model is loaded
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "weights that cannot be read"),
        (lambda path: path.unlink(), "model.safetensors"),
        (lambda path: lose_a_tensor(path), "the weights lack model.norm.weight"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_not_served(damage, message, chat_checkpoint, tmp_path):
    from chat_model import ChatModel

    folder = shutil.copytree(chat_checkpoint, tmp_path / "model")
    damage(folder / "model.safetensors")
    with pytest.raises((ValueError, OSError), match=message):
        ChatModel(str(folder), "cpu")


def lose_a_tensor(path):
    tensors = load_file(path)
    tensors.pop("model.norm.weight")
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    "field",
    [{"min_p": 0.5}, {"min_tokens": 5}, {"ignore_eos": True}, {"stop_token_ids": [5]}, {"guided_json": {"a": 1}},
     {"structured_outputs": {"json": {}}}, {"logprobs": 0}, {"prompt_logprobs": 0}, {"modalities": ["audio"]},
     {"top_logprobs": 2}, {"tool_choice": "required"}, {"use_beam_search": True}, {"bad_words": ["a"]},
     {"truncate_prompt_tokens": 1}, {"include_stop_str_in_output": True}, {"skip_special_tokens": False},
     {"continue_final_message": True}, {"chat_template_kwargs": {"enable_thinking": False}}],
)  # fmt: skip
def test_what_vllm_would_honour_is_refused_rather_than_ignored(field):
    from openai_routes import CompletionRequest
    from sampling import RequestError

    with pytest.raises(RequestError, match=next(iter(field))):
        CompletionRequest(prompt="a", **field).sampling()
