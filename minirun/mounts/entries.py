"""Entries of config.json's mounts in words: destinations, lines of the plan and of its script."""

from __future__ import annotations

import os

from minirun import inroot, mountoptions
from minirun.log import printable
from minirun.step import quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.spec import Mount


def clean(path: str) -> str:
    """Make a destination absolute and plain: `a//b/./c/..` is `/a/b` (path.Clean in Go)."""
    done: list[str] = []
    for part in inroot.parts_of(path):
        if part == "..":
            if done:
                done.pop()
        else:
            done.append(part)
    return "/" + "/".join(done)


def below(root: str, path: str) -> str | None:
    """Tell where an absolute path of the host is in the root filesystem; None if it is elsewhere.

    `root` is the root filesystem's path without links; the links above it in `path` are followed.
    What is below / is the host's: the container's mounts are on a copy of it.
    """
    if root == "/":
        return None
    path = clean(path)
    if path == root or path.startswith(f"{root}/"):
        return path[len(root) :] or "/"
    top = _status(root)
    end = len(path)
    while end > 0 and top is not None:
        above = path[:end]
        if _status(above) == top and os.path.realpath(above) == root:
            return path[end:] or "/"
        end = path.rfind("/", 0, end)
    return None


def _status(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def place(root: str, entry: Mount) -> str:
    """Return an entry's destination as a path in the root filesystem.

    One that begins with the root filesystem's own path on the host is taken from there, as in runc.
    """
    path = clean(entry.destination)
    if root != "/" and path.startswith(f"{root}/"):
        return path[len(root) :]
    return path


def describe(entry: Mount) -> str:
    """Say a mount in a line, as the plan shows it."""
    options = f" ({','.join(entry.options)})" if entry.options else ""
    kind = "bind" if is_bind(entry) else entry.type or "?"
    source = f" {entry.source}" if entry.source and entry.source != entry.type else ""
    return f"{kind}{source} on {clean(entry.destination)}{options}"


def is_bind(entry: Mount) -> bool:
    """Whether an entry binds something that is there already."""
    return entry.type == "bind" or any(option in mountoptions.BIND for option in entry.options)


def keeps_link(entry: Mount, root: str) -> bool:
    """Whether a symbolic link is mounted, or mounted over, instead of what it leads to."""
    ends = {"src-nofollow": entry.source or "", "dest-nofollow": root + place(root, entry)}
    return any(name in entry.options and os.path.islink(path) for name, path in ends.items())


def shell_mount(entry: Mount, root: str = "/") -> str:
    """Write the shell line that mounts an entry below $root, the root filesystem `root`."""
    target = f'"$root"{quoted(place(root, entry))}'
    if "remount" in entry.options:
        words = [option for option in entry.options if option != "remount"]
        return f"mount -o {quoted(','.join(['remount', *words]))} {target}"
    if "copy-symlink" in entry.options and os.path.islink(entry.source or ""):
        return f'mkdir -p "$(dirname {target})" && cp -Pn {quoted(entry.source or "")} {target}'
    if keeps_link(entry, root):
        return f"# Left out, for mount(8) follows symbolic links: {printable(describe(entry))}"
    if "tmpcopyup" in entry.options:
        # The copy waits aside while the new mount covers where it comes from.
        plain = [option for option in entry.options if option != "tmpcopyup"]
        return (
            f'up=$(mktemp -d) && cp -a {target}/. "$up" && '
            f"{shell_mount(entry.replace(options=tuple(plain)), root)} && "
            f'cp -a "$up"/. {target} && rm -r "$up"'
        )
    options = ",".join(entry.options)
    if is_bind(entry):
        how = "--rbind" if "rbind" in entry.options else "--bind"
        source = entry.source or ""
        rest = ",".join(o for o in entry.options if o in mountoptions.ATTRIBUTES)
        how += f" -o {rest}" if rest else ""  # with `remount` those of the source would stay
        made, file = f"mkdir -p {target}", f'mkdir -p "$(dirname {target})" && touch {target}'
        make = made if os.path.isdir(source) else file
        if below(root, source) is not None:  # it may be there only then
            make = f"if [ -d {quoted(source)} ]; then {made}; else {file}; fi"
        return f"{make} && mount {how} {quoted(source)} {target}"
    kind = "cgroup2" if entry.type == "cgroup" else entry.type or ""
    keep = ",".join(o for o in options.split(",") if (o and not o.startswith("r")) or o == "ro")
    how = f" -o {quoted(keep)}" if keep else ""
    source = quoted(entry.source or kind)
    # -i: a helper such as mount.fuse would run what the source says.
    return f"mkdir -p {target} && mount -i -t {quoted(kind)}{how} {source} {target}"
