"""The guard of ``tests/offline``: this machine may speak to itself and to no other."""

import socket

import psutil
import pytest
import sitecustomize

FAMILIES = (socket.AF_INET, socket.AF_INET6)
OWN = sorted(
    {
        (address.family, address.address)
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family in FAMILIES and not address.address.startswith("fe80")  # needs its interface's name
    }
)


@pytest.mark.parametrize(("family", "address"), OWN)
def test_the_machine_may_speak_to_itself(family, address):
    with socket.socket(family) as server, socket.socket(family) as client:
        server.bind((address, 0))
        server.listen()
        client.connect((address, server.getsockname()[1]))
        assert client.getpeername()[0] == address


@pytest.mark.parametrize(
    "address", ["198.51.100.7", "2001:db8::7", "224.0.0.1", "255.255.255.255", "1.1.1.1"]
)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_another_machine_is_refused(address, kind):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for method in ("connect", "connect_ex"):
        with socket.socket(family, kind) as client, pytest.raises(sitecustomize.NetworkAttemptError):
            getattr(client, method)((address, 80))
    with pytest.raises(sitecustomize.NetworkAttemptError, match="look up|connect to"):
        socket.getaddrinfo(address, 80)


@pytest.mark.parametrize("name", ["huggingface.co", b"example.com"])
def test_no_name_is_looked_up(name):
    with pytest.raises(sitecustomize.NetworkAttemptError, match="look up"):
        socket.getaddrinfo(name, 443)
