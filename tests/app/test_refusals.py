"""OpenAPI says what is sent, and what is sent is what OpenAPI says."""

import pytest

CHAT = {"messages": [{"role": "user", "content": "def"}], "max_tokens": 1}
GENERATING = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "def", "max_tokens": 1},
    "/generate": {"prompt": "def", "max_new_tokens": 1},
    "/": {"inputs": "def", "parameters": {"max_new_tokens": 1}},
}


@pytest.fixture(scope="module")
def schema(client):
    return client.get("/openapi.json").json()


@pytest.fixture(scope="module")
def guarded(chat):
    from api import make_api
    from fastapi.testclient import TestClient
    from guard import Guard

    return TestClient(
        Guard(make_api(chat), only_loopback_hosts=True, check_origin=True), base_url="http://127.0.0.1"
    )


def declared(schema, path, method="post"):
    return schema["paths"][path][method]["responses"]


@pytest.mark.parametrize("path", GENERATING)
def test_the_statuses_of_a_generation(schema, path):
    invalid = "422" if path == "/" else "400"
    assert set(declared(schema, path)) == {"200", invalid, "401", "403", "411", "413", "429", "500", "503"}
    assert "Retry-After" in declared(schema, path)["429"]["headers"]
    assert ("text/event-stream" in declared(schema, path)["200"]["content"]) == (path != "/generate")
    assert "application/json" in declared(schema, path)["200"]["content"]


def test_the_statuses_of_the_rest(schema):
    assert set(declared(schema, "/health", "get")) == {"200", "401", "403", "429"}
    assert set(declared(schema, "/v1/models", "get")) == {"200", "401", "403", "429"}
    assert set(declared(schema, "/v1/models/{name}", "get")) == {"200", "401", "403", "404", "429"}
    assert "ValidationError" not in str(schema)


def wrong_requests(path, body):
    """Status -> what provokes it."""
    yield 200, {"json": body}
    yield (
        422 if path == "/" else 400,
        {"json": {**body, **({"inputs": 5} if path == "/" else {"temperature": 9})}},
    )
    yield 422 if path == "/" else 400, {"content": b"{", "headers": {"Content-Type": "application/json"}}
    yield 422 if path == "/" else 400, {"content": b""}
    yield 403, {"json": body, "headers": {"Origin": "http://evil.example"}}
    yield 413, {"content": b"x" * (2**20 + 1)}
    yield 411, {"content": iter([b"x"])}


@pytest.mark.parametrize("path", GENERATING)
def test_what_is_sent_is_declared(guarded, schema, path):
    for status, sent in wrong_requests(path, GENERATING[path]):
        answer = guarded.post(path, **sent)
        assert answer.status_code == status, (sent, answer.text)
        content = declared(schema, path)[str(status)]["content"]
        assert answer.headers["content-type"].partition(";")[0] in content
        if status != 200:
            name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
            required = schema["components"]["schemas"][name]["required"]
            assert set(answer.json()) == set(required), "the body has the declared shape"


def test_a_malformed_request_of_tgis_has_its_shape(client):
    for body in (
        {},
        {"inputs": None},
        {"inputs": "x", "parameters": {"temperature": "hot"}},
        [],
        {"inputs": 5},
    ):
        answer = client.post("/", json=body)
        assert answer.status_code == 422, answer.text
        assert answer.json()["error_type"] == "validation"
        assert "error" in answer.json()


def test_a_bug_is_json_and_names_no_path(client, chat, monkeypatch):
    def fail(*arguments):
        raise KeyError("/home/ada/secret.txt")

    monkeypatch.setattr(type(chat), "text_ids", fail)
    for path in ("/v1/completions", "/generate", "/"):
        answer = client.post(path, json=GENERATING[path])
        assert answer.status_code == 500
        assert "this server failed (KeyError)" in answer.text
        assert "ada" not in answer.text


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/v1/completions", {"prompt": ["def", 5]}, "prompt.0"),
        ("/v1/completions", {"prompt": [[5, None]]}, "prompt.0.1"),
        ("/v1/completions", {"prompt": "x", "stop": [None]}, "stop.0"),
        ("/v1/completions", {"prompt": "x", "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [5]}]}, "messages.0.content.0"),
        ("/v1/chat/completions", {"messages": [{"content": "x"}]}, "messages.0.role"),
        ("/v1/chat/completions", {**CHAT, "max_completion_tokens": 1.5}, "max_completion_tokens"),
        ("/", {"inputs": "x", "parameters": 5}, "parameters"), ("/", {"inputs": ["x"]}, "inputs"),
        ("/", {"inputs": "x", "parameters": {"max_new_tokens": 0}}, "max_new_tokens"),
        ("/", {"inputs": "x", "parameters": {"stop": "x"}}, "stop"), ("/generate", {"prompt": None}, "prompt"),
    ],
)  # fmt: skip
def test_the_field_that_is_wrong_stands_first(client, path, body, where):
    """And neither another one nor the name of a type of ours."""
    error = client.post(path, json=body).json()["error"]
    message = error if path == "/" else error["message"]
    assert message.partition(":")[0] == where
