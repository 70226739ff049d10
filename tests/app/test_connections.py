"""Connections over a real socket: latency, headers that never end, clients that go, events that no proxy keeps."""

import contextlib
import http.client
import json
import logging
import resource
import socket
import threading
import time

import pytest

from tests.app.conftest import served
from tests.waits import wait_for

CHAT = {
    "messages": [{"role": "user", "content": "def add(left, right):"}],
    "max_tokens": 200,
    "temperature": 0,
}


@pytest.fixture(scope="module")
def port(chat):
    from api import make_api
    from connections import Unbuffered

    with served(Unbuffered(make_api(chat))) as port:
        yield port


def request(port, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    data = None if body is None else json.dumps(body).encode()
    connection.request("POST" if data else "GET", path, data, {"Content-Type": "application/json"})
    return connection, connection.getresponse


def test_small_answers_leave_at_once(port):
    """Nagle's algorithm and a delayed acknowledgement cost 40 ms each request on a connection kept for some time."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    seconds = []
    for _ in range(60):
        begin = time.perf_counter()
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        seconds.append(time.perf_counter() - begin)
    connection.close()
    assert min(seconds[30:]) < 0.03


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_accepted_connections_send_without_delay(host):
    """asyncio sets the option only on sockets that say they are TCP's."""
    from app import bound_socket

    try:
        listening = bound_socket(host, 0)
    except ValueError:
        pytest.skip(f"no {host} here")
    listening.listen()
    with listening, socket.create_connection(listening.getsockname()[:2]) as _:
        accepted, _ = listening.accept()
        with accepted:
            assert listening.proto == accepted.proto == socket.IPPROTO_TCP


BEGINNINGS = {
    "nothing": b"",
    "a letter": b"G",
    "headers without end": b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: ",
    "a body that does not come": b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{",
}


def cut_after(connection):
    """Seconds until the server has ended a connection."""
    begin = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(4096):
            pass
    return time.monotonic() - begin


@pytest.mark.parametrize("beginning", BEGINNINGS.values(), ids=BEGINNINGS)
def test_a_request_that_does_not_end_is_cut(port, beginning, monkeypatch):
    monkeypatch.setattr("connections.REQUEST_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=600) as connection:
        connection.sendall(beginning)
        assert cut_after(connection) < 10, "by the 20 seconds that are shipped"


def test_a_second_request_that_does_not_end_is_cut(port, monkeypatch):
    monkeypatch.setattr("connections.REQUEST_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=600) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        time.sleep(0.5)  # between requests the time does not run
        connection.sendall(b"GET /hea")
        assert cut_after(connection) < 10, "by the 20 seconds that are shipped"


def test_drops_of_a_header_do_not_prolong_it(port, monkeypatch):
    monkeypatch.setattr("connections.REQUEST_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", port), timeout=600) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")

        def is_cut():
            try:
                return connection.send(b"X-A: b\r\n") == 0
            except OSError:
                return True

        wait_for(is_cut)


def test_an_answer_may_take_longer_than_a_request(port, chat, monkeypatch):
    monkeypatch.setattr("connections.REQUEST_SECONDS", 0.3)
    forward = type(chat.model).forward

    def slow(self, *arguments, **keywords):
        time.sleep(0.15)
        return forward(self, *arguments, **keywords)

    monkeypatch.setattr(type(chat.model), "forward", slow)
    _, answer = request(port, "/v1/chat/completions", {**CHAT, "max_tokens": 6})
    assert answer().status == 200


def test_long_headers_are_refused(port):
    with socket.create_connection(("127.0.0.1", port), timeout=600) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 70_000)
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")


def test_connections_are_bounded_and_quiet(chat, monkeypatch, caplog, capfd):
    """300 sockets and 256 files once stopped the server, with a traceback for every one that found no file left."""
    from api import make_api
    from connections import BoundedHTTP

    caplog.set_level(logging.WARNING)
    with served(make_api(chat)) as port:
        monkeypatch.setattr(BoundedHTTP, "most_connections", 8)
        sockets = [socket.create_connection(("127.0.0.1", port), timeout=600) for _ in range(60)]
        try:
            time.sleep(0.3)
            for each in sockets[:8]:
                each.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert each.recv(4096).startswith(b"HTTP/1.1 200"), "who was there first is answered"
        finally:
            for each in sockets:
                each.close()

        def is_answered():
            try:
                return request(port, "/health")[1]().status == 200
            except OSError:
                return False

        wait_for(is_answered)
    assert len(caplog.text) + len(capfd.readouterr().err) < 1000


@pytest.mark.parametrize(("num_files", "expected"), [(256, 64), (1024, 832), (100_000, 1024), (10, 8)])
def test_connections_leave_files_for_the_rest(monkeypatch, num_files, expected):
    from connections import most_connections

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (num_files, num_files))
    assert most_connections() == expected


@pytest.fixture
def slow_model(chat, monkeypatch):
    """Some ten seconds an answer; returns a list that grows with each token of them."""
    forward, tokens = type(chat.model).forward, []

    def slow(self, *arguments, **keywords):
        time.sleep(0.05)
        tokens.append(len(tokens))
        return forward(self, *arguments, **keywords)

    monkeypatch.setattr(type(chat.model), "forward", slow)
    return tokens


BODIES = {
    "chat": ("/v1/chat/completions", CHAT),
    "text": ("/v1/completions", {"prompt": "def", "max_tokens": 200, "temperature": 0}),
    "generate": ("/generate", {"prompt": "def", "max_new_tokens": 200, "temperature": 0}),
    "tgi": ("/", {"inputs": "def", "parameters": {"max_new_tokens": 200}}),
    "streamed": ("/v1/chat/completions", {**CHAT, "stream": True}),
    "tgi streamed": ("/", {"inputs": "def", "parameters": {"max_new_tokens": 200}, "stream": True}),
}


def num_free(chat):
    taken = 0
    while chat.places.acquire(blocking=False):
        taken += 1
    for _ in range(taken):
        chat.places.release()
    return taken


@pytest.mark.parametrize(("path", "body"), BODIES.values(), ids=BODIES)
def test_a_place_is_free_soon_after_its_client_has_gone(port, chat, slow_model, path, body):
    connection, _ = request(port, path, body)
    wait_for(chat.one_at_a_time.locked)
    connection.close()
    wait_for(lambda: not chat.one_at_a_time.locked())
    assert len(slow_model) < 150, "the answer was made to its end"


@pytest.mark.parametrize(("path", "body"), BODIES.values(), ids=BODIES)
def test_who_goes_while_waiting_leaves_the_line(port, chat, path, body):
    from chat_model import MAX_REQUESTS

    with chat.one_at_a_time:
        connection, _ = request(port, path, body)
        wait_for(lambda: num_free(chat) == MAX_REQUESTS - 1)
        connection.close()
        wait_for(lambda: num_free(chat) == MAX_REQUESTS)


def test_a_full_line_says_when_to_come_again(port, chat):
    from chat_model import MAX_REQUESTS

    for _ in range(MAX_REQUESTS):
        chat.places.acquire()
    try:
        for path, body in BODIES.values():
            _, answer = request(port, path, body)
            answer = answer()
            assert answer.status == 429
            assert int(answer.getheader("Retry-After")) > 0
            assert json.loads(answer.read())
    finally:
        for _ in range(MAX_REQUESTS):
            chat.places.release()


def test_events_are_not_kept_by_a_proxy(port):
    for path, body in (BODIES["streamed"], BODIES["tgi streamed"]):
        _, answer = request(port, path, body)
        assert answer().getheader("X-Accel-Buffering") == "no"
    _, answer = request(port, "/health")
    assert answer().getheader("X-Accel-Buffering") is None


def test_text_without_blanks_comes_while_it_is_made(port, chat, slow_model, monkeypatch):
    """Chunks of a stream, by the time they come; the model says the same letter again and again."""
    letter = chat.tokenizer.convert_tokens_to_ids("x")

    def only(self, *arguments, **keywords):
        time.sleep(0.02)
        output = forward(self, *arguments, **keywords)
        output.logits[..., letter] = 1e4
        return output

    forward = type(chat.model).forward
    monkeypatch.setattr(type(chat.model), "forward", only)
    _, answer = request(
        port, "/v1/completions", {"prompt": "def", "max_tokens": 20, "temperature": 0, "stream": True}
    )
    answer = answer()
    seconds = [time.monotonic() for line in answer if line.startswith(b"data: {")]
    assert len(seconds) >= 20
    assert seconds[-1] - seconds[0] > 0.3, "it came in one piece"


def test_a_thread_is_not_left_behind(port, chat):
    before = threading.active_count()
    connection, _ = request(port, "/v1/chat/completions", CHAT)
    wait_for(chat.one_at_a_time.locked)
    connection.close()
    wait_for(lambda: not chat.one_at_a_time.locked())
    wait_for(lambda: threading.active_count() <= before + 2)
