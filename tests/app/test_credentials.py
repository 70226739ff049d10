"""Who is let in: letters of any language, guesses that are slowed down, settings that cannot be."""

import asyncio
import base64
import time

import pytest
from fastapi.testclient import TestClient

WORDS = {
    "ascii": "canary-password",
    "latin": "pässwörd",
    "chinese": "密码🙂",
    "colon": "a:b:c",
    "inner": "two words",
}


def basic(user, password, encoding="utf-8"):
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode(encoding))


def api_of(chat, password, user="ada"):
    from api import make_api

    return TestClient(make_api(chat, (user, password)))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr("credentials.GUESS_SECONDS", 0.2)


@pytest.mark.parametrize("password", WORDS.values(), ids=WORDS)
def test_any_password_can_be_sent(chat, password):
    client = api_of(chat, password, "Zoë")
    headers = [b"Bearer " + password.encode(), b"bearer " + password.encode(), basic("Zoë", password)]
    if password.isascii() or password == WORDS["latin"]:
        headers += [b"Bearer " + password.encode("latin-1"), basic("Zoë", password, "latin-1")]
    for header in headers:
        assert client.get("/health", headers={"Authorization": header}).status_code == 200, header


@pytest.mark.parametrize(
    "header",
    [b"Bearer p\xc3\xa4sswor", b"Bearer p?ssw?rd", b"Bearer ", b"Bearer", b"", b"Basic !!!", b"Basic " + b"A" * 9,
     basic("bob", "p\xe4ssw\xf6rd"), basic("ada", "passwort"), b"Token p\xc3\xa4ssw\xc3\xb6rd", b"\xff\xff \xff"],
)  # fmt: skip
def test_what_is_wrong_is_kept_out(chat, header):
    answer = api_of(chat, WORDS["latin"]).get("/health", headers={"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Basic realm="LLM Foundry", charset="UTF-8"'


def test_nobody_is_heard_out_without_credentials(chat):
    """A body used to be read before anybody was asked."""
    from api import make_api

    api, sent = make_api(chat, ("ada", "x")), []

    async def receive():
        raise AssertionError("the body was read")

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [], "query_string": b"",
        "client": ("192.0.2.1", 5), "server": ("x", 80), "scheme": "http", "root_path": "", "http_version": "1.1",
    }  # fmt: skip
    asyncio.run(api(scope, receive, send))
    assert sent[0]["status"] == 401


def test_guesses_are_slowed_down_and_the_owner_is_let_in(chat):
    client = api_of(chat, "right")
    begin = time.monotonic()
    answers = [
        client.get("/health", headers={"Authorization": f"Bearer wrong{n}"}).status_code for n in range(12)
    ]
    assert set(answers) == {401}
    assert time.monotonic() - begin > 7 * 0.2
    begin = time.monotonic()
    assert client.get("/health", headers={"Authorization": "Bearer right"}).status_code == 200, "no lock-out"
    assert time.monotonic() - begin < 30, "FORGOTTEN_SECONDS are 60"


class Gate:
    """The middleware around an application that answers as Gradio's login does, asked from addresses of our choice."""

    def __init__(self):
        from credentials import Credentials

        self.gate = Credentials(self.application, "ada", "right")

    async def application(self, scope, receive, send):
        status = 400 if scope["path"] == "/login" and scope["query_string"] != b"right" else 200
        await send({"type": "http.response.start", "status": status, "headers": []})

    async def ask(self, address="192.0.2.1", password="wrong", path="/health"):
        statuses = []

        async def send(message):
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        headers = [] if path == "/login" else [(b"authorization", f"Bearer {password}".encode())]
        scope = {
            "type": "http", "method": "POST" if path == "/login" else "GET", "path": path, "headers": headers,
            "client": (address, 5), "query_string": password.encode(),
        }  # fmt: skip
        await self.gate(scope, None, send)
        return statuses[0]


@pytest.mark.parametrize("path", ["/health", "/login"])
def test_many_guesses_at_once_are_turned_away_and_other_addresses_are_not(path):
    async def run():
        gate = Gate()
        first = [await gate.ask(path=path) for _ in range(6)]
        at_once = asyncio.gather(*(gate.ask(path=path) for _ in range(50)))
        await asyncio.sleep(0.05)
        assert await gate.ask("192.0.2.2", "right", path) == 200
        assert not at_once.done(), "who comes from elsewhere does not wait with them"
        wrong = 400 if path == "/login" else 401
        assert set(first) == {wrong}
        answers = await at_once
        assert answers.count(wrong) == 4
        assert answers.count(429) == 46
        assert await gate.ask(password="right", path=path) == 200, "it is not locked out"

    asyncio.run(run())


def test_logins_at_once_count_before_they_are_answered():
    async def run():
        gate, held = Gate(), asyncio.Event()
        application = gate.application

        async def slow(scope, receive, send):
            await held.wait()
            await application(scope, receive, send)

        gate.gate.app = slow
        asked = [asyncio.create_task(gate.ask(path="/login")) for _ in range(50)]
        await asyncio.sleep(0.3)
        held.set()
        answers = await asyncio.gather(*asked)
        assert answers.count(400) <= 5 + 4
        assert answers.count(429) == 50 - answers.count(400)

    asyncio.run(run())


def test_right_logins_do_not_count(monkeypatch):
    monkeypatch.setattr("credentials.GUESS_SECONDS", 60.0)

    async def run():
        gate = Gate()
        begin = time.monotonic()
        for _ in range(30):
            assert await gate.ask(password="right", path="/login") == 200
            assert await gate.ask(password="right") == 200
        assert time.monotonic() - begin < 30

    asyncio.run(run())


def test_guesses_are_forgotten_and_few_addresses_kept(monkeypatch):
    async def run():
        gate = Gate()
        for _ in range(6):
            await gate.ask()
        monkeypatch.setattr("credentials.FORGOTTEN_SECONDS", 0)
        monkeypatch.setattr("credentials.GUESS_SECONDS", 60.0)
        begin = time.monotonic()
        await gate.ask()
        assert time.monotonic() - begin < 30
        for number in range(3000):
            await gate.ask(f"10.0.{number // 256}.{number % 256}")
        assert len(gate.gate.addresses) == 1024
        for number in range(50):
            await gate.ask(f"2001:db8::{number:x}")
        assert sum(not name.startswith("10.") for name in gate.gate.addresses) == 1, (
            "of IPv6 a network counts"
        )

    asyncio.run(run())


@pytest.mark.parametrize(
    ("user", "password", "message"),
    [
        ("ada", "", "APP_PASSWORD: not set"), ("", "x", "APP_USER: not set"), ("ada", "x\n", "APP_PASSWORD: expected"),
        ("ada", " x", "APP_PASSWORD: expected"), ("ada", "a\tb", "APP_PASSWORD: expected"),
        ("a:b", "x", "APP_USER: expected"), ("ada ", "x", "APP_USER: expected"),
    ],
)  # fmt: skip
def test_credentials_that_nobody_could_send_are_refused_at_the_start(monkeypatch, user, password, message):
    """One of the two alone left the server open without a word."""
    from app import find_credentials

    monkeypatch.setenv("APP_USER", user)
    monkeypatch.setenv("APP_PASSWORD", password)
    with pytest.raises(ValueError, match=message) as raised:
        find_credentials("127.0.0.1")
    assert not password.strip() or password.strip() not in str(raised.value).replace("expected", "")


def test_credentials_from_the_environment(monkeypatch):
    from app import find_credentials

    monkeypatch.setenv("APP_USER", "Zoë")
    monkeypatch.setenv("APP_PASSWORD", "密码 🙂:x")
    assert find_credentials("0.0.0.0") == ("Zoë", "密码 🙂:x")
    monkeypatch.delenv("APP_USER")
    monkeypatch.delenv("APP_PASSWORD")
    assert find_credentials("127.0.0.1") is None
