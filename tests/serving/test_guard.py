"""Who may send requests, and how large they may be."""

import http.client

import pytest

from codellama_jax.serving import guard, page
from codellama_jax.serving.guard import Rules

KEY = "a-key-of-many-characters"


@pytest.fixture(scope="module")
def locked(start_server):
    """A server with a key and one page that may send requests. It is not waited for."""
    origins = ("http://editor.example",)
    return start_server(Rules(KEY, 1_000, origins=origins), wait=False)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Bearer {KEY}x"}, 401),
        ({"Authorization": f"Basic {KEY}"}, 401),
        ({"Authorization": "Bearer é"}, 401),
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"X-Api-Key": KEY}, 200),
    ],
)
def test_a_key(locked, headers, status):
    found, answer = locked.send("GET", "/v1/models", **headers)
    assert found == status
    if status == 401:
        assert answer["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("path", ["/", "/page/absent.js"])
def test_the_page_needs_no_key(locked, path):
    assert locked.send("GET", path)[0] in (200, 404)


def test_only_named_origins_may_send_requests(locked, client):
    key = {"Authorization": f"Bearer {KEY}"}
    connection, response = locked.connect(
        "GET", "/v1/models", **key, Origin="http://editor.example"
    )
    connection.close()
    assert response.headers["access-control-allow-origin"] == "http://editor.example"
    assert locked.send("GET", "/v1/models", **key, Origin="http://evil.example")[0] == 403
    connection, response = client.connect("GET", "/v1/models")
    connection.close()
    assert "access-control-allow-origin" not in response.headers
    assert client.send("GET", "/v1/models", Origin="http://evil.example")[0] == 403
    same = f"http://127.0.0.1:{client.port}"
    assert client.send("GET", "/v1/models", Origin=same)[0] == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example"])
def test_a_name_that_points_here_is_refused_without_a_key(client, host):
    status, answer = client.send("GET", "/v1/models", Host=host)
    assert status == 403 and "the header Host" in answer["error"]["message"]


def test_a_large_body_is_refused(client):
    status, answer = client.send("POST", "/v1/completions", b"x" * 100_001)
    assert status == 413 and "at most 100,000 bytes" in answer["error"]["message"]
    connection = http.client.HTTPConnection("127.0.0.1", client.port)
    connection.request("POST", "/tokenize", iter([b"x" * 60_000] * 2), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize("path, host, status", [("/tokenize", "", 413), ("/tokenize", "evil", 403)])
def test_a_client_that_sends_a_large_body_reads_its_refusal(client, path, host, status):
    headers = {"Host": host} if host else {}
    # More than the buffers between both: sending fails where the connection is closed before.
    answered, answer = client.send("POST", path, b"x" * 20_000_000, **headers)
    assert answered == status and "error" in answer


def test_a_slow_body_is_given_up(client, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    connection = http.client.HTTPConnection("127.0.0.1", client.port)
    connection.putrequest("POST", "/tokenize")
    connection.putheader("Content-Length", "10")
    connection.endheaders(b"{")
    response = connection.getresponse()
    assert response.status == 408 and b"did not arrive" in response.read()
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/absent", 404), ("DELETE", "/health", 405)]
)
def test_an_unknown_path_or_method_has_the_same_layout(client, method, path, status):
    found, answer = client.send(method, path)
    assert found == status and answer["error"]["type"] == "invalid_request_error"


def test_a_defect_is_one_line_without_a_traceback(client, monkeypatch, logged):
    def fail(*args, **options):
        raise ValueError("/secret/path\nand more")

    monkeypatch.setattr(page, "FileResponse", fail)
    status, answer = client.send("GET", "/")
    assert status == 500 and answer["error"]["message"] == "internal error"
    assert logged(1) == ["error: '/': ValueError: /secret/path"]


def test_the_page_sends_a_policy_and_no_file_beside_it(client, tmp_path, monkeypatch):
    connection, response = client.connect("GET", "/")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert b"<html" in response.read()
    connection.close()
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "a.js").write_text("1")
    (tmp_path / "secret").write_text("2")
    monkeypatch.setattr(page, "FOLDER", folder)
    assert client.send("GET", "/page/a.js") == (200, "1")
    absent = ("../secret", "%2e%2e/secret", "absent", "/etc/passwd", "%00", "a" * 5_000, "")
    for name in absent:
        assert client.send("GET", f"/page/{name}")[0] == 404


def test_the_description_names_every_endpoint(client):
    status, description = client.send("GET", "/openapi.json")
    assert status == 200 and description["openapi"].startswith("3.1")
    body = description["paths"]["/infill"]["post"]["requestBody"]["content"]
    assert "n_indent" in body["application/json"]["schema"]["properties"]
    assert {"/v1/completions", "/health", "/v1/models/{name}"} <= set(description["paths"])
