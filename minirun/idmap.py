"""User and group id maps of user namespaces (user_namespaces(7)).

Used by what stands above the facilities and by `mounts` for id-mapped mounts.
"""

from __future__ import annotations

import os

from minirun.errors import MinirunError
from minirun.kernel import process
from minirun.kernel.libc import trace, write_once
from minirun.kernel.unshare import CLONE_NEWUSER
from minirun.privilege import needs_helper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from minirun.spec import IDMapping


def text_of(mappings: Sequence[IDMapping]) -> str:
    """Render mappings as the kernel reads them: `container host size` per line."""
    return "".join(f"{one.container_id} {one.host_id} {one.size}\n" for one in mappings)


def write_maps(pid: int, uids: Sequence[IDMapping], gids: Sequence[IDMapping]) -> None:
    """Write both maps of a process that has just entered a new user namespace.

    The process must wait meanwhile and be ours to reap, so that `pid` cannot be another's.
    """
    write_once(f"/proc/{pid}/gid_map", text_of(gids))
    write_once(f"/proc/{pid}/uid_map", text_of(uids))


def write_maps_of_user(pid: int, uids: Sequence[IDMapping], gids: Sequence[IDMapping]) -> None:
    """Write both maps for a caller who is not root: his own id himself, others by newuidmap(1).

    Who maps only his own group must give up setgroups(2) before, or could leave groups that keep
    him from files (CVE-2014-8989). Raises MinirunError when a helper is missing or refuses.
    """
    if needs_helper([_numbers(one) for one in gids], os.getegid()):
        _by_helper("newgidmap", pid, gids)
    else:
        write_once(f"/proc/{pid}/setgroups", "deny")
        write_once(f"/proc/{pid}/gid_map", text_of(gids))
    if needs_helper([_numbers(one) for one in uids], os.geteuid()):
        _by_helper("newuidmap", pid, uids)
    else:
        write_once(f"/proc/{pid}/uid_map", text_of(uids))


def _numbers(one: IDMapping) -> tuple[int, int, int]:
    return one.container_id, one.host_id, one.size


def _by_helper(name: str, pid: int, mappings: Sequence[IDMapping]) -> None:
    """Have a set-user-ID program of the package uidmap write a map that /etc/sub?id allows."""
    path = next((p for p in (f"/usr/bin/{name}", f"/bin/{name}") if os.access(p, os.X_OK)), "")
    kind = name[3:6]  # uid or gid
    if not path:
        raise MinirunError(
            f"{name}: executable file not found",
            cause=f"linux.{kind}Mappings has more than the caller's own {kind}",
            fix="install the package uidmap, or map one ID: minirun spec --rootless",
        )
    words = [path, str(pid), *[str(number) for one in mappings for number in _numbers(one)]]
    status, said = process.run([os.fsencode(word) for word in words])
    trace(lambda: f"{' '.join(words)} = {status}")
    if status != 0:
        raise MinirunError(
            f"{name}: {said.removeprefix(f'{name}: ') or f'exit status {status}'}",
            cause=f"what a user may map stands in /etc/sub{kind} (sub{kind}(5)), beside his own "
            f"{kind} alone",
            fix=f"sudo usermod --add-sub{kind}s 100000-165535 USER",
        )


def user_namespace(uids: Sequence[IDMapping], gids: Sequence[IDMapping]) -> int:
    """Return a descriptor of a new user namespace with these maps, for id-mapped mounts.

    A child lives in it until the maps are written; the namespace lives as long as the descriptor.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid, pidfd = process.clone3(CLONE_NEWUSER)
    if pid == 0:
        # The end of the pipe is the parent's word, or its death.
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        write_maps(pid, uids, gids)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writer)
        os.close(reader)
        os.waitpid(pid, 0)
        os.close(pidfd)
