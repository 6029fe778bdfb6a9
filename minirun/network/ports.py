"""Published ports: are they free, by whom are they held, and which are given when any will do."""

from __future__ import annotations

import errno
import os
import socket

from minirun.errors import MinirunError
from minirun.network.plan import Publish, conflict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_ATTEMPTS = 100
_LISTEN = "0A"  # include/net/tcp_states.h, TCP_LISTEN; udp's are 07
_UNCONNECTED = "07"


def choose(wanted: Iterable[Publish], held: Iterable[tuple[str, Publish]]) -> tuple[Publish, ...]:
    """Return the ports with every number settled; `held` are those of (container, its ports).

    A port of a free choice is settled one by one. Raises MinirunError that names who holds a port.
    """
    taken = list(held)
    settled: list[Publish] = []
    for publish in sorted(wanted, key=lambda one: one.host_port == 0):  # the fixed ones first
        found = [_claim(publish, taken)] if publish.host_port else _free(publish, taken)
        taken += [("", one) for one in found]
        settled += found
    return tuple(settled)


def _claim(publish: Publish, taken: list[tuple[str, Publish]]) -> Publish:
    for container, other in taken:
        if conflict(publish, other):
            raise MinirunError(
                f"port {publish} is already published by container {container}",
                fix="publish another port of the host, or none: -p ::80 chooses a free one",
            )
    for port in range(publish.host_port, publish.host_port + publish.count):
        _probe(publish.address, port, publish.protocol)
    return publish


def _free(publish: Publish, taken: list[tuple[str, Publish]]) -> list[Publish]:
    found: list[Publish] = []
    for step in range(publish.count):
        single = publish.replace(container_port=publish.container_port + step, count=1)
        for _ in range(_ATTEMPTS):
            choice = single.replace(host_port=_probe(publish.address, 0, publish.protocol))
            others = [*taken, *(("", one) for one in found)]
            if not any(conflict(choice, other) for _, other in others):
                break
        else:
            raise MinirunError(f"no free port on {publish.address} for {single}")
        found.append(choice)
    return found


def _probe(address: str, port: int, protocol: str) -> int:
    """Bind and let go; return the port that was bound. Raises MinirunError if it is held."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC) as probe:
        if protocol == "tcp":
            # Connections in TIME_WAIT are no holders; a listener is one nevertheless: socket(7).
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise _refused(address, port, protocol, error) from error
        return int(probe.getsockname()[1])


def _refused(address: str, port: int, protocol: str, error: OSError) -> MinirunError:
    where = f"port {address}:{port}/{protocol}"
    if error.errno == errno.EADDRINUSE:
        return MinirunError(f"{where} is already in use{_holder(port, protocol)}")
    if error.errno == errno.EADDRNOTAVAIL:
        return MinirunError(
            f"{where} cannot be published: {address} is not an address of this host",
            fix="publish on 127.0.0.1, on 0.0.0.0 (all), or on an address that `ip address` shows",
        )
    return MinirunError(f"{where} cannot be published: {os.strerror(error.errno or 0).lower()}")


def _holder(port: int, protocol: str) -> str:
    """Name the process that listens on a port, as ` by process 12 (nginx)`; "" if none is seen."""
    sockets = _sockets(port, protocol)
    for pid in filter(str.isdecimal, os.listdir("/proc")) if sockets else ():
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") in sockets:
                    with open(f"/proc/{pid}/comm", "rb") as file:
                        name = file.read().decode("utf-8", "replace").strip()
                    return f" by process {pid} ({name})"
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return ""


def _sockets(port: int, protocol: str) -> set[str]:
    """Find the sockets bound to a port as /proc/PID/fd shows them. Source: proc_pid_net(5)."""
    state = _LISTEN if protocol == "tcp" else _UNCONNECTED
    found = set()
    for table in (protocol, protocol + "6"):
        try:
            with open(f"/proc/self/net/{table}", encoding="ascii") as file:
                rows = [line.split() for line in file][1:]
        except FileNotFoundError:
            continue
        for row in rows:
            if row[1].rpartition(":")[2] == f"{port:04X}" and row[3] == state:
                found.add(f"socket:[{row[9]}]")
    return found
