"""HOST:PORT, the two sockets of a receiver (one port, TCP for what must arrive and UDP for symbols), and how datagrams leave.

Datagrams of one size go to the system as one buffer, which it cuts (generic segmentation offload of Linux): one call for
each would take longer than all else that the transport does, and wake whoever receives each time.
"""

import errno
import os
import re
import socket
import ssl
import struct
from typing import Any

import click
from semseal.runtime.errors import TransportError

_UDP_SEGMENT = 103  # of linux/udp.h
_MAX_SEGMENTS, _MAX_BYTES = 64, 65507  # of one call
_TRIES = 50  # for a port that is free for both


class Address(click.ParamType):
    """HOST:PORT; [HOST]:PORT for an IPv6 address. Port 0, which is any that is free, is none to connect to."""

    name = "address"

    def __init__(self, lowest_port: int = 0) -> None:
        self._lowest_port = lowest_port

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%\w]+)\]|([^\s:\[\]/]+)):(\d{1,5})", str(value), re.ASCII)
        if found is None or not self._lowest_port <= int(found[3]) <= 65535:
            self.fail(f"{value!r} is not HOST:PORT, such as 192.0.2.7:7000 or [::1]:7000", param, ctx)
        host = found[1] or found[2]
        try:
            host.encode("idna")  # as the look-up does
        except UnicodeError:
            self.fail(f"{host!r} cannot be the name of a host: a part of it is empty or has more than 63 letters", param, ctx)
        return host, int(found[3])


def shown_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def why(error: Exception) -> str:
    """What the system says of a socket, without asyncio's words around it."""
    if isinstance(error, socket.gaierror | ssl.SSLError) or not isinstance(error, OSError):
        return (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
    codes = {error.errno} if error.errno else {int(code) for code in re.findall(r"\[Errno (\d+)\]", str(error))}
    return ", ".join(os.strerror(code) for code in sorted(codes)) or str(error) or type(error).__name__


def cannot_listen(host: str, port: int, error: OSError) -> TransportError:
    hints = {
        errno.EADDRINUSE: "another program has this port: choose another",
        errno.EACCES: "choose a port of 1024 or above",
        errno.EADDRNOTAVAIL: "listen at an address of this machine, or at 0.0.0.0 for all",
    }
    hint = hints.get(error.errno or 0, "check the address")
    return TransportError(f"cannot listen at {shown_address(host, port)}: {why(error)}", hint)


def bound(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Sockets that listen, TCP and UDP, on one port; port 0: any that is free. Raises TransportError."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        for _ in range(_TRIES if port == 0 else 1):
            tcp, udp = socket.socket(family, socket.SOCK_STREAM), socket.socket(family, socket.SOCK_DGRAM)
            try:
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tcp.bind(where)
                udp.bind((where[0], tcp.getsockname()[1], *where[2:]))
                tcp.listen(128)
                tcp.setblocking(False)
                udp.setblocking(False)
                return tcp, udp
            except OSError as error:
                tcp.close()
                udp.close()
                if port or error.errno != errno.EADDRINUSE:
                    raise
    except OSError as error:
        raise cannot_listen(host, port, error) from None
    raise TransportError(f"cannot listen at {shown_address(host, port)}: no port is free for TCP and UDP", "choose a port")


def send(udp: socket.socket, datagrams: list[bytes]) -> list[bytes]:
    """Send what the system takes now, and return the rest. What the network says of an earlier one is passed over."""
    done = 0
    while done < len(datagrams):
        run = _run(datagrams, done)
        try:
            _send_run(udp, run)
        except BlockingIOError:
            return datagrams[done:]
        except OSError:  # the connection tells whether somebody is there
            pass
        done += len(run)
    return []


def _run(datagrams: list[bytes], start: int) -> list[bytes]:
    """Those from ``start`` on that may go in one call: of one size."""
    size = len(datagrams[start])
    end = start + 1
    most = start + min(_MAX_SEGMENTS, _MAX_BYTES // size)
    while end < min(most, len(datagrams)) and len(datagrams[end]) == size:
        end += 1
    return datagrams[start:end]


def _send_run(udp: socket.socket, run: list[bytes]) -> None:
    if len(run) > 1:
        cut = [(socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", len(run[0])))]
        try:
            udp.sendmsg(run, cut)
            return
        except BlockingIOError:
            raise
        except OSError:  # a path that cannot: larger than its MTU, or a device without checksums
            pass
    for data in run:
        udp.send(data)
