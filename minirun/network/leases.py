"""Who has which address, link and ports: one file, read and written under one lock.

The lock is flock(2) on the directory itself (0700), so no lock file is left behind; the file is
replaced by rename, and removed with the last lease. What a lease says is written before anything
is made, so that whoever comes after a crash can remove it.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from contextlib import suppress

from minirun.errors import MinirunError, Unsupported
from minirun.jsontext import dumps, read
from minirun.network import address
from minirun.network.plan import Publish
from minirun.record import (
    INT64,
    UINT32,
    UINT64,
    Record,
    boolean,
    integer,
    many,
    string,
    strings,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

LOCK_TIMEOUT = 60.0  # seconds; an attach holds the lock for a tenth of one
_POLL = 0.02  # seconds
_STATE = "state.json"
_TEMPORARY = "state.json.new"


class Lease(Record):
    """One container on one network.

    `link` and `mac` are of the host's end of its veth pair; `ifindex` is 0 until that is known.
    `netns`, `pid` and `start` (clock ticks after boot) tell whose it is. `hosts` is its hosts
    file, known by device and inode, "" if it has none. `attached` is False while work goes on.
    """

    id: str = string(required=True)
    hostname: str = string(default="")
    address: str = string(required=True)
    link: str = string(required=True)
    mac: str = string(required=True)
    ifindex: int = integer(0, UINT32, default=0)
    netns: int = integer(0, UINT64, required=True)
    pid: int = integer(1, UINT32, required=True)
    start: int = integer(0, INT64, required=True)
    publish: tuple[Publish, ...] = many(Publish)
    metadata: bool = boolean(default=False)
    hosts: str = string(default="")
    hosts_device: int = integer(0, UINT64, default=0)
    hosts_inode: int = integer(0, UINT64, default=0)
    extra_hosts: tuple[str, ...] = strings()
    attached: bool = boolean(default=False)


class Network(Record):
    """One bridge and its leases. `last` is the address given last; the next one is tried first."""

    name: str = string(required=True)
    bridge: str = string(required=True)
    subnet: str = string(required=True)
    last: str = string(default="")
    leases: tuple[Lease, ...] = many(Lease)

    def find(self, container: str) -> Lease | None:
        """Give the container's lease here."""
        return next((lease for lease in self.leases if lease.id == container), None)

    def with_lease(self, lease: Lease) -> Self:
        """Add the lease, or replace that of the same container."""
        others = tuple([other for other in self.leases if other.id != lease.id])
        return self.replace(leases=(*others, lease))

    def without(self, container: str) -> Self:
        """Remove the container's lease."""
        return self.replace(leases=tuple([one for one in self.leases if one.id != container]))


class State(Record):
    """All networks of one host.

    `boot` and `netns` (an inode) say which host: the names of links mean nothing elsewhere.
    `opened` are the interfaces whose IPv4 forwarding minirun switched on; `guarded` tells whether
    containers are kept from forging each other's addresses.
    """

    boot: str = string(default="")
    netns: int = integer(0, UINT64, default=0)
    opened: tuple[str, ...] = strings()
    guarded: bool = boolean(default=False)
    networks: tuple[Network, ...] = many(Network)

    def find(self, name: str) -> Network | None:
        """Give the network of this name."""
        return next((network for network in self.networks if network.name == name), None)

    def with_network(self, network: Network) -> Self:
        """Add the network, or replace that of the same name."""
        names = [other.name for other in self.networks]
        if network.name not in names:
            return self.replace(networks=(*self.networks, network))
        return self.replace(
            networks=tuple([network if o.name == network.name else o for o in self.networks])
        )

    def without(self, name: str) -> Self:
        """Remove the network of this name."""
        return self.replace(networks=tuple([one for one in self.networks if one.name != name]))


class Book:
    """The directory of the leases, locked: `with Book(directory) as book`.

    Raises Unsupported if the directory is not safely ours, MinirunError if the lock does not come
    free within LOCK_TIMEOUT.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._fd = -1

    def __enter__(self) -> Self:
        self._fd = _open_directory(self.directory)
        try:
            _lock(self._fd, self.directory)
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._fd)  # which unlocks

    def load(self) -> State:
        """Read the state; an empty one if there is none. Raises MinirunError if it is damaged."""
        try:
            return State.decode(read(_STATE, f"{self.directory}/{_STATE}", self._fd))
        except FileNotFoundError:
            return State()

    def save(self, state: State) -> None:
        """Replace the state; remove the file if nothing is left to know."""
        if not state.networks and not state.opened:
            with suppress(FileNotFoundError):
                os.unlink(_STATE, dir_fd=self._fd)
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(_TEMPORARY, flags, 0o600, dir_fd=self._fd)
        try:
            raw = dumps(state.encode(), "  ").encode()
            while raw:
                raw = raw[os.write(fd, raw) :]
        finally:
            os.close(fd)
        os.rename(_TEMPORARY, _STATE, src_dir_fd=self._fd, dst_dir_fd=self._fd)


def peek(directory: str) -> State:
    """Read the state without the lock, as it is replaced whole; an empty one if there is none."""
    try:
        return State.decode(read(f"{directory}/{_STATE}", f"{directory}/{_STATE}"))
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise Unsupported(
            f"cannot read {directory}/{_STATE}: {(error.strerror or '').lower()}",
            fix="run as root",
        ) from error


def _open_directory(path: str) -> int:
    if not os.path.isabs(path):
        raise Unsupported(f"the network's state directory must be an absolute path: {path!r}")
    parent = ""
    for part in path.strip("/").split("/"):
        parent += "/" + part
        try:
            os.mkdir(parent, 0o700)
        except FileExistsError:
            continue
        except OSError as error:
            raise Unsupported(
                f"cannot make {parent}: {(error.strerror or '').lower()}",
                cause="the network keeps its leases there",
                fix="run as root",
            ) from error
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Unsupported(f"cannot open {path}: {(error.strerror or '').lower()}") from error
    info = os.fstat(fd)
    if info.st_uid != os.geteuid() or stat.S_IMODE(info.st_mode) & 0o022:
        os.close(fd)
        raise Unsupported(
            f"{path} can be written by others",
            cause="whoever writes the leases says which links are deleted",
            fix=f"remove it, or chown it to this user and chmod it to 0700: {path}",
        )
    return fd


def _lock(fd: int, directory: str) -> None:
    end = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise MinirunError(
                    f"the network's lock is held for more than {LOCK_TIMEOUT:.0f} s: {directory}",
                    fix=f"fuser -v {directory} shows by whom",
                ) from None
        time.sleep(_POLL)


def free_address(network: Network, wanted: str = "") -> str:
    """Choose an address: `wanted`, or the next free one after that given last.

    An address just returned is thus the last to be given again, while others may still send to it.
    Raises MinirunError if there is none.
    """
    subnet = address.parse_subnet(network.subnet)
    first = address.gateway(subnet) + 1
    size = (1 << 32 - subnet[1]) - 3  # without the network, the gateway and the broadcast address
    taken = {address.parse(lease.address): lease.id for lease in network.leases}
    if wanted:
        value = address.parse(wanted)
        if not first <= value < first + size:
            raise MinirunError(f"address {wanted} is not for containers of {network.subnet}")
        if value in taken:
            raise MinirunError(f"address {wanted} is taken by container {taken[value]}")
        return wanted
    start = address.parse(network.last) + 1 - first if network.last else 0
    # At most one more than there are leases has to be tried.
    for offset in range(min(size, len(taken) + 1)):
        value = first + (start + offset) % size
        if value not in taken:
            return address.show(value)
    raise MinirunError(
        f"no free address in network {network.name} ({network.subnet})",
        cause=f"all {size} are leased",
        fix="delete containers, or use a network with a larger subnet",
    )
