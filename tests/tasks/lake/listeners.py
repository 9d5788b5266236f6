"""Who listens where while something runs."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil


def listeners() -> dict[tuple[str, int], str]:
    """What this process and all below it listen on: {(address, port): process}."""
    me, found = psutil.Process(), {}
    for process in (me, *me.children(recursive=True)):
        try:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found[connection.laddr.ip, connection.laddr.port] = process.name()
        except psutil.NoSuchProcess:
            continue
    return found


def abroad(found: dict[tuple[str, int], str]) -> dict[tuple[str, int], str]:
    """Those that other machines reach."""
    return {at: name for at, name in found.items() if not ipaddress.ip_address(at[0].removeprefix("::ffff:")).is_loopback}


@contextmanager
def watched() -> Iterator[dict[tuple[str, int], str]]:
    """All that listened at some time meanwhile."""
    found, over = listeners(), threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            found.update(listeners())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
