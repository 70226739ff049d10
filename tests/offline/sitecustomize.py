"""Refuses every connection that leaves this machine, in the tests and in each process they start.

On ``PYTHONPATH`` of every test process; Python imports ``sitecustomize`` by itself at start.
"""

import ipaddress
import socket

_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo


class NetworkAttemptError(RuntimeError):
    """A test tried to reach another machine."""


def _refuse_remote(host):
    name = host.decode() if isinstance(host, bytes) else str(host)
    if name in ("", "localhost", socket.gethostname(), "None"):
        return
    try:
        address = ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        raise NetworkAttemptError(f"a test tried to look up {name}") from None
    if not (address.is_loopback or address.is_unspecified or _is_own(address)):
        raise NetworkAttemptError(f"a test tried to connect to {name}")


def _is_own(address):
    """Whether an interface of this machine has the address: the kernel would send to it from itself.

    Ray's processes speak to each other over it.  A datagram socket that connects sends nothing.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            _connect(probe, (str(address), 9))
        except OSError:  # no route, a broadcast address, no IPv6
            return False
        return ipaddress.ip_address(probe.getsockname()[0].split("%")[0]) == address


def _guard(original):
    def connect(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse_remote(address[0])
        return original(self, address)

    return connect


def getaddrinfo(host, *arguments, **keywords):
    _refuse_remote(host)
    return _getaddrinfo(host, *arguments, **keywords)


socket.socket.connect = _guard(_connect)
socket.socket.connect_ex = _guard(_connect_ex)
socket.getaddrinfo = getaddrinfo
