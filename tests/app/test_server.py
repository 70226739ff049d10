"""The server as its users meet it: browser page, Hugging Face's client, plain HTTP, and people who mean harm."""

import json
import math
import os
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.app.conftest import start, wait_until_up
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow
CHAT = [{"role": "user", "content": "def add(left, right):"}]


def post(url, path, body, timeout=60, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        url + path, data=data, headers={"Content-Type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def get(url, path):
    try:
        with urllib.request.urlopen(url + path, timeout=20) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def test_health(server):
    status, text = get(server, "/health")
    health = json.loads(text)
    assert status == 200
    assert health["status"] == "ok"
    assert health["checkpoint"] == "tiny-chat"
    assert 0 < health["parameters_billions"] < 0.001


def test_hugging_faces_own_client(server):
    """In a process of its own: HF_HUB_OFFLINE blocks the client even on this machine."""
    code = (
        "import sys; from huggingface_hub import InferenceClient\n"
        f"client = InferenceClient(base_url={server!r}, api_key='x')\n"
        f"messages = {CHAT!r}\n"
        "whole = client.chat_completion(messages, max_tokens=12, temperature=0)\n"
        "parts = [c.choices[0].delta.content or '' for c in "
        "client.chat_completion(messages, max_tokens=12, temperature=0, stream=True)]\n"
        "assert len(parts) > 2, parts\n"
        "assert ''.join(parts) == whole.choices[0].message.content, (parts, whole)\n"
        "assert whole.usage.prompt_tokens > 5\n"
        "assert whole.choices[0].finish_reason == 'length', 'an untrained model is cut, and that is said'\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert finished.returncode == 0, finished.stderr


def test_the_page_streams_and_takes_settings(server):
    from gradio_client import Client

    client = Client(server, verbose=False)
    job = client.submit("def add(left, right):", 0.0, 16, 0.9, 0, 1.0, api_name="/chat")
    final = job.result(timeout=60)
    outputs = job.outputs()
    assert len(outputs) > 1
    assert all(isinstance(output, str) and final.startswith(output) for output in outputs)


def test_plain_generation_and_its_bounds(server):
    status, answer = post(server, "/generate", {"prompt": "def add", "max_new_tokens": 5, "temperature": 0})
    assert status == 200
    assert answer["full_response"] == "def add" + answer["generated_text"]
    status, answer = post(server, "/generate", {"prompt": "def", "max_new_tokens": 10**9, "temperature": 0})
    assert status == 200, "clamped to what the model can hold"
    assert answer["tokens_generated"] < 300


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/generate", {"prompt": "x" * 1_000_000}, "prompt: at most"),
        ("/generate", {"prompt": "word " * 2000}, "this model reads fewer than 256"),
        ("/generate", {"prompt": ""}, "prompt: expected some text"),
        ("/generate", {"prompt": "x", "temperature": 9}, "temperature: expected 0 to 2"),
        ("/generate", {"prompt": "x", "temperature": math.nan}, "temperature"),
        ("/generate", {"prompt": "x", "top_p": 0}, "top_p"),
        ("/v1/chat/completions", {"messages": CHAT, "top_p": 7}, "top_p"),
        ("/v1/chat/completions", {"messages": CHAT, "top_p": 7, "stream": True}, "top_p"),
        (
            "/v1/chat/completions",
            {"messages": [{**CHAT[0], "content": "x" * 1_000_000}]},
            "messages: at most",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_words(server, path, body, message):
    status, text = post(server, path, body)
    assert status in (400, 422)
    assert message in str(text)


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"messages": []}', b'{"messages": [{"role": "root", "content": 1}]}']
)
def test_a_broken_request_is_the_clients_error(server, body):
    status, _ = post(server, "/v1/chat/completions", body)
    assert status == 422


def test_a_flood_is_bounded_and_the_server_lives(server):
    body = {"messages": CHAT, "max_tokens": 100, "temperature": 0}
    with ThreadPoolExecutor(50) as pool:
        codes = [
            code for code, _ in pool.map(lambda _: post(server, "/v1/chat/completions", body), range(50))
        ]
    assert set(codes) <= {200, 429}
    assert codes.count(200) >= 1
    assert get(server, "/health")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../etc/passwd", "/file=/etc/passwd",
        "/gradio_api/file=%2Fetc%2Fpasswd", "/gradio_api/file=app/app.py", "/gradio_api/file=config.json",
    ],
)  # fmt: skip
def test_no_file_is_served(server, path):
    status, text = get(server, path)
    assert status in (403, 404)
    assert "root:" not in text
    assert "import" not in text


def test_other_machines_need_credentials(chat_checkpoint):
    process, _ = start(chat_checkpoint, "--host", "0.0.0.0")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "set APP_USER and APP_PASSWORD first" in output
    assert "Traceback" not in output


def test_credentials_guard_every_route(chat_checkpoint):
    process, url = start(chat_checkpoint, APP_USER="ada", APP_PASSWORD="canary-password")
    try:
        wait_until_up(process, url, {"Authorization": "Bearer canary-password"})
        assert get(url, "/health")[0] == 401
        assert post(url, "/v1/chat/completions", {"messages": CHAT})[0] == 401
        assert post(url, "/generate", {"prompt": "x"}, Authorization="Bearer wrong")[0] == 401
        body = {"messages": CHAT, "max_tokens": 2}
        assert post(url, "/v1/chat/completions", body, Authorization="Bearer canary-password")[0] == 200
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_no_model_is_one_line(tmp_path):
    finished = subprocess.run(
        [sys.executable, "app/app.py", "--model", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert finished.returncode == 2
    assert finished.stderr.count("\n") == 1
    assert finished.stderr.startswith("error: --model")
