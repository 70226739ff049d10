"""A tiny chat model, in this process and behind one running server."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest

from tests import warm_start
from tests.conftest import REPOSITORY
from tests.waits import wait_for

sys.path.append(str(REPOSITORY / "app"))  # the app's files import each other as neighbours, as on a Space


@pytest.fixture(scope="session")
def chat_checkpoint(tmp_path_factory):
    import torch

    from modeling_foundry import FoundryConfig, FoundryForCausalLM
    from modeling_foundry.data.tokenizer.training import train_tokenizer

    tokenizer = train_tokenizer(["def add(left, right): return the sum of both\n" * 10], vocab_size=320)
    torch.manual_seed(2)
    config = FoundryConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=256, tie_word_embeddings=True,
        eos_token_id=2, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("chat") / "tiny-chat"
    model = FoundryForCausalLM(config)
    model.model.embed_tokens.weight.data[:260] *= 0.1  # it says words rather than halves of characters
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat(chat_checkpoint):
    from chat_model import ChatModel

    return ChatModel(str(chat_checkpoint), "cpu")


@pytest.fixture(scope="session")
def client(chat):
    """The API without a network."""
    from api import make_api
    from fastapi.testclient import TestClient

    return TestClient(make_api(chat), raise_server_exceptions=False)


@pytest.fixture(scope="session")
def page(chat):
    from chat_page import make_page

    return make_page(chat)


@contextlib.contextmanager
def served(application):
    """A free port of this machine where an application answers, in a thread of this process."""
    from app import bound_socket, make_server

    address = bound_socket("127.0.0.1", 0)
    server = make_server(application)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [address]})
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield address.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        address.close()


def start(checkpoint, *arguments, **environment):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    process = warm_start.Popen(
        [sys.executable, "app/app.py", "--model", str(checkpoint), "--port", str(port), *arguments],
        cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return process, f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def server(chat_checkpoint):
    process, url = start(chat_checkpoint)
    try:
        while True:
            assert process.poll() is None, process.stdout.read()
            try:
                assert json.load(urllib.request.urlopen(f"{url}/health", timeout=600))["status"] == "ok"
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()
