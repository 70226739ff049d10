"""One running server around a tiny chat model."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="session")
def chat_checkpoint(tmp_path_factory):
    import torch

    from modeling_foundry import FoundryConfig, FoundryForCausalLM
    from modeling_foundry.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["def add(left, right): return the sum of both\n" * 10], vocab_size=320)
    torch.manual_seed(0)
    config = FoundryConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=256, tie_word_embeddings=True,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("chat") / "tiny-chat"
    FoundryForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(checkpoint, *arguments, **environment):
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "app/app.py", "--model", str(checkpoint), "--port", str(port), *arguments],
        cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return process, f"http://127.0.0.1:{port}"


def wait_until_up(process, url, headers=None):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        try:
            request = urllib.request.Request(f"{url}/health", headers=headers or {})
            return json.load(urllib.request.urlopen(request, timeout=5))
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server did not come up")


@pytest.fixture(scope="module")
def server(chat_checkpoint):
    process, url = start(chat_checkpoint)
    try:
        wait_until_up(process, url)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)
