"""Which systemd unit is a container's: `slice:prefix:name`, and where its cgroup lies.

    machine.slice:libpod:web    libpod-web.scope in machine.slice
    a-b.slice:runc:web          runc-web.scope in a-b.slice, which is /a.slice/a-b.slice
    :runc:web, or no path       runc-web.scope in system.slice, of a user manager in user.slice
    -:x:web                     x-web.scope at the top
    a.slice::a-b.slice          the slice a-b.slice itself; the prefix does not count

Sources: runc 1.5, docs/systemd.md, which engines count on; systemd.unit(5), systemd.slice(5).
"""

from __future__ import annotations

from minirun.errors import ConfigError

WHERE = "linux.cgroupsPath"
DEFAULT_PREFIX = "runc"  # that of runc: engines look for the scope by it
_NAME_MAX = 255
_SLICE = ".slice"
_PLAIN = ":-_.\\"  # beside letters and digits: systemd.unit(5)


class Unit:
    """A unit's `name`, the `slice` that it is in, and `path`: its cgroup below the manager's."""

    def __init__(self, name: str, slice_: str) -> None:
        self.name = name
        self.slice = slice_
        self.path = f"{expand(slice_).rstrip('/')}/{name}"

    @property
    def is_slice(self) -> bool:
        """Whether the container is given a slice as its cgroup, instead of a scope."""
        return self.name.endswith(_SLICE)


def unit_of(cgroups_path: str | None, cid: str, *, user: bool = False) -> Unit:
    """Read `linux.cgroupsPath` for container `cid`; `user`: the manager is a user's.

    Raises ConfigError for another form, and for what cannot be a unit's name.
    """
    default = "user.slice" if user else "system.slice"
    parts = (cgroups_path or f":{DEFAULT_PREFIX}:{cid}").split(":")
    if len(parts) != 3:
        raise ConfigError(
            WHERE,
            'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, '
            f'got "{cgroups_path}" instead',
            fix='leave out --systemd-cgroup, or write such as "system.slice:runc:web"',
        )
    slice_, prefix, name = parts
    slice_ = "-.slice" if slice_ == "-" else slice_ or default
    if not name:
        raise ConfigError(WHERE, f"has no name after the last colon: {cgroups_path!r}")
    expand(slice_)
    if not name.endswith(_SLICE):
        return Unit(_checked(f"{prefix}-{name}.scope"), slice_)
    unit = Unit(_checked(name), slice_)
    if expand(name) != unit.path:
        raise ConfigError(WHERE, f"the slice {name} does not lie in {slice_}")
    return unit


def expand(slice_: str) -> str:
    """Give the cgroup of a slice: `a-b.slice` is /a.slice/a-b.slice, `-.slice` is /.

    Raises ConfigError for what is no slice's name.
    """
    stem = slice_.removesuffix(_SLICE)
    if stem == slice_ or not stem or "/" in slice_:
        raise ConfigError(WHERE, f"invalid slice name: {slice_}")
    if stem == "-":
        return "/"
    parts = stem.split("-")
    if "" in parts:  # a dash at an end, or two together
        raise ConfigError(WHERE, f"invalid slice name: {slice_}")
    _checked(slice_)
    names = ["-".join(parts[: number + 1]) + _SLICE for number in range(len(parts))]
    return "/" + "/".join(names)


def _checked(name: str) -> str:
    odd = [char for char in name if not char.isascii() or not (char.isalnum() or char in _PLAIN)]
    if odd or len(name) > _NAME_MAX:
        why = f"{odd[0]!r} is not allowed" if odd else f"is longer than {_NAME_MAX}"
        raise ConfigError(WHERE, f"no systemd unit can be named {name[:80]!r}: {why}")
    return name
