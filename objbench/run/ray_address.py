"""Whether anything answers at the address of a Ray cluster. Ray is not imported: that takes seconds, and Ray itself
would wait for minutes."""

from __future__ import annotations

import os
import socket

from objbench.errors import UsageError

ANSWER_S = 5.0
"""Seconds within which an address must answer."""
HOW = "start one with `ray start --head`, or give its address: --on ray=HOST:PORT"


def check_address(address: str) -> str:
    """The address as Ray takes it. address: "HOST:PORT", or "" for RAY_ADDRESS, else the cluster of this machine.

    Raises UsageError when it is no address, or no Ray answers there.
    """
    address = address or os.environ.get("RAY_ADDRESS", "") or "auto"
    if address not in ("auto", "local"):
        host, _, port = address.rpartition("://")[2].rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UsageError(f"--on ray={address}: not an address such as 10.0.0.1:6379")
        if fault := no_answer(host.strip("[]"), int(port)):
            raise UsageError(f"--on ray={address}: no Ray cluster answers there ({fault}); {HOW}")
    return address


def no_answer(host: str, port: int) -> str:
    """Why nothing there can be Ray; "" when it speaks HTTP/2, as Ray does."""
    try:
        with socket.create_connection((host, port), timeout=ANSWER_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return ""
            connection.settimeout(ANSWER_S)
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            return "" if connection.recv(9)[3:4] == b"\x04" else "something else does"
    except TimeoutError:
        return f"nothing within {ANSWER_S:g} s"
    except OSError as error:
        return error.strerror or str(error)
