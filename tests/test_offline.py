"""The guard itself: a network attempt fails the test, here and in child processes."""

import socket
import subprocess
import sys

import pytest

ATTEMPT = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"


def test_connection_to_another_machine_is_refused():
    with pytest.raises(RuntimeError, match="tried to connect to 192.0.2.1"):
        socket.socket().connect(("192.0.2.1", 80))


def test_name_lookup_is_refused():
    with pytest.raises(RuntimeError, match="tried to look up example.org"):
        socket.getaddrinfo("example.org", 80)


def test_child_processes_are_guarded():
    child = subprocess.run([sys.executable, "-c", ATTEMPT], capture_output=True, text=True)
    assert child.returncode == 1
    assert "NetworkAttemptError" in child.stderr


def test_loopback_works():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
