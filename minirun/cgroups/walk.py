"""Walk a cgroup's descendants whatever the payload built there: 10000 deep, 10000 wide.

No recursion, no path (PATH_MAX would end it), one descriptor at a time (RLIMIT_NOFILE would): down
by name, up by `..`. Going up is safe, as version 2 has no rename and no links.
"""

from __future__ import annotations

import errno
import os

from minirun.cgroups.hierarchy import open_inside, read_at
from minirun.kernel.path import RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_GONE = (errno.ENOENT, errno.ENODEV)
_UP = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV


def children(dirfd: int) -> list[str]:
    """Name the direct child groups."""
    with os.scandir(dirfd) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


def walk(dirfd: int) -> Iterator[tuple[int, str]]:
    """Visit the group `dirfd` and all below it, twice each but the top.

    Yields (descriptor, "") on entering a group, and (descriptor of the parent, name) on leaving it:
    at that moment all its children were left. The descriptor is good until the next step. A group
    that vanishes meanwhile is passed over.
    """
    fd = os.dup(dirfd)
    trail: list[str] = []
    try:
        yield fd, ""
        todo = [children(fd)]
        while True:
            if todo[-1]:
                name = todo[-1].pop()
                try:
                    below = open_inside(fd, name, _DIRECTORY)
                except FileNotFoundError:
                    continue
                os.close(fd)
                fd = below
                trail.append(name)
                yield fd, ""
                todo.append(_children_of_live(fd))
            elif trail:
                above = openat2(fd, "..", _DIRECTORY, resolve=_UP)
                os.close(fd)
                fd = above
                todo.pop()
                yield fd, trail.pop()
            else:
                return
    finally:
        os.close(fd)


def _children_of_live(fd: int) -> list[str]:
    try:
        return children(fd)
    except OSError as error:
        if error.errno in _GONE:
            return []
        raise


def member_pids(dirfd: int) -> list[int]:
    """Give the processes of one group, in this process's pid namespace; those outside are left out.

    A threaded group answers with its threads. A removed one has none.
    """
    for file in ("cgroup.procs", "cgroup.threads"):
        try:
            text = read_at(dirfd, file)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP and file == "cgroup.procs":
                continue
            if error.errno in _GONE:
                return []
            raise
        return [int(line) for line in text.split() if line != "0"]
    return []
