"""`-v`, `--mount`, `--tmpfs` and `--device` as mounts of config.json.

    -v SOURCE:TARGET[:OPTIONS]     OPTIONS: ro rw bind rbind noexec idmap noidmap, by commas
    --mount type=bind,src=/a,dst=/b[,ro]       a field in double quotes may hold commas
    --mount type=tmpfs,dst=/b[,tmpfs-size=64m,tmpfs-mode=1777,ro,exec]
    --tmpfs TARGET[:size=64m,mode=1777,ro,exec,uid=0,gid=0]

A volume is always nosuid and nodev. In a user namespace its files keep their owners: user 1000 of
the host is user 1000 there, and what the container's root writes belongs to the host's root; with
`noidmap` the host's owners are nobody there, and what is written belongs to the leased range.

What would hand over the host is refused, unless asked for by `--security-opt dangerous-volumes`.
"""

from __future__ import annotations

import os
import stat

from minirun import units
from minirun.engine.overlay import kernel_release
from minirun.errors import MinirunError, UsageError
from minirun.kernel.libc import AT_FDCWD
from minirun.kernel.path import RESOLVE_NO_SYMLINKS, openat2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any

# Whoever may read or write these has the host: configuration, secrets, sockets, kernel interfaces.
_HOST = ("/", "/proc", "/sys", "/dev", "/etc", "/run", "/boot", "/root")
_HOST_BELOW = ("/proc", "/sys", "/dev", "/run/minirun", "/run/systemd", "/run/dbus")
# What root runs, or what other containers are made of.
_HOST_WRITABLE = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/var", "/var/lib", "/home", "/opt")
_ENGINE_SOCKETS = (
    "docker.sock", "containerd.sock", "podman.sock", "crio.sock", "buildkitd.sock",
)  # fmt: skip

# The container's own: a mount over them would take its protection away (or the runtime refuses it).
_RESERVED = ("/proc", "/sys", "/dev")
_RESERVED_EXCEPT = ("/dev/shm", "/dev/mqueue")

_PATH_MAX = 4096 - 1
_SHARED_ATTRIBUTES = (5, 12)  # mount_setattr(2), by which options reach the mounts below


class Volume:
    """A bind mount that was asked for. `idmap` is whether its files shall keep their owners."""

    def __init__(self, source: str, target: str, option: str) -> None:
        self.source = source
        self.target = target
        self.option = option  # as typed, for errors
        self.readonly = False
        self.recursive = True
        self.noexec = False
        self.idmap = True
        self.identity = (0, 0)  # device and inode of the source that `danger` has judged

    def encode(self, mapping: list[dict[str, int]] | None) -> dict[str, Any]:
        """Give the entry of config.json; `mapping` is the user namespace's, None for no mapping."""
        names = ["nosuid", "nodev", *(["ro"] if self.readonly else [])]
        names += ["noexec"] if self.noexec else []
        deep = self.recursive and kernel_release() >= _SHARED_ATTRIBUTES
        if deep:
            # Without the r the mounts below the source would stay writable (runtime-spec 1.0).
            names += [f"r{name}" for name in names]
        entry: dict[str, Any] = {
            "destination": self.target,
            "type": "bind",
            "source": self.source,
            "options": ["rbind" if deep else "bind", "rprivate", *names],
        }
        if mapping is not None and self.idmap:
            entry["uidMappings"] = mapping
            entry["gidMappings"] = mapping
        return entry


def parse(
    volumes: Iterable[str], mounts: Iterable[str], tmpfs: Iterable[str]
) -> list[Volume | dict[str, Any]]:
    """Read the three options: binds as Volume, in-memory file systems as entries of config.json.

    Raises UsageError naming the option for what cannot be understood, and for two on one target.
    """
    found: dict[str, Volume | dict[str, Any]] = {}
    for text in volumes:
        _add(found, _volume(text))
    for text in mounts:
        _add(found, _mount(text))
    for text in tmpfs:
        target, colon, options = text.partition(":")
        option = f"--tmpfs {text!r}"
        if colon and not options:
            raise UsageError(f"{option}: no options after the colon")
        _add(found, _tmpfs(target, options.split(",") if colon else [], option))
    return list(found.values())


def _add(found: dict[str, Volume | dict[str, Any]], item: Volume | dict[str, Any]) -> None:
    target = item.target if isinstance(item, Volume) else str(item["destination"])
    if target in found:
        raise UsageError(f"two mounts on {target}", fix="take one of them away")
    found[target] = item


def _volume(text: str) -> Volume:
    option = f"--volume {text!r}"
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise UsageError(
            f"invalid {option}: want SOURCE:TARGET[:OPTIONS]",
            fix="write a path that holds a colon as --mount type=bind,src=SOURCE,dst=TARGET",
        )
    volume = Volume(_source(parts[0], option), _target(parts[1], option), option)
    for name in parts[2].split(",") if len(parts) == 3 else []:
        _apply(volume, name)
    return volume


def _apply(volume: Volume, name: str) -> None:
    if name in ("ro", "readonly", "rw"):
        volume.readonly = name != "rw"
    elif name in ("bind", "rbind"):
        volume.recursive = name == "rbind"
    elif name in ("idmap", "noidmap"):
        volume.idmap = name == "idmap"
    elif name == "noexec":
        volume.noexec = True
    elif name not in ("nosuid", "nodev", "rprivate", "private"):  # those hold anyway
        raise UsageError(f"{volume.option}: unknown option {name!r}", fix=_KNOWN)


_KNOWN = "options are ro, rw, bind, rbind, noexec, idmap, noidmap; nosuid and nodev always hold"


def _mount(text: str) -> Volume | dict[str, Any]:
    option = f"--mount {text!r}"
    fields = [field.partition("=") for field in _fields(text, option)]
    values: dict[str, str] = {}
    for name, equals, value in fields:
        key = _ALIASES.get(name, name)
        if key in values:
            raise UsageError(f"{option}: {key} is given twice")
        values[key] = value if equals else "true"
    kind = values.pop("type", "bind")
    target = values.pop("dst", "")
    if kind == "tmpfs":
        names = ("tmpfs-size", "tmpfs-mode")
        options = [_tmpfs_option(key.removeprefix("tmpfs-") if key in names else key, value)
                   for key, value in values.items()]  # fmt: skip
        return _tmpfs(target, [name for name in options if name], option)
    if kind != "bind":
        raise UsageError(f"{option}: type {kind!r} is not known", fix="types are bind and tmpfs")
    volume = Volume(_source(values.pop("src", ""), option), _target(target, option), option)
    for key, value in values.items():
        if key in ("bind-propagation", "private", "rprivate"):
            if value not in ("private", "rprivate", "true"):
                raise UsageError(f"{option}: mounts are never shared with the host")
        elif _true(value, key, option):
            _apply(volume, key)
    return volume


_ALIASES = {
    "source": "src", "target": "dst", "destination": "dst", "readonly": "ro", "size": "tmpfs-size",
    "mode": "tmpfs-mode",
}  # fmt: skip


def _tmpfs_option(key: str, value: str) -> str:
    if key in ("ro", "rw", "exec", "noexec"):
        return key if _true(value, key, "--mount") else ""
    return f"{key}={value}"


def _true(value: str, key: str, option: str) -> bool:
    if value not in ("true", "false", "1", "0"):
        raise UsageError(f"{option}: {key} is true or false, not {value!r}")
    return value in ("true", "1")


def _fields(text: str, option: str) -> Iterator[str]:
    """Split at commas, but for those in double quotes, in which "" is one quote (RFC 4180)."""
    rest = text
    while True:
        if rest.startswith('"'):
            field, rest = _quoted(rest[1:], option)
        else:
            end = rest.find(",")
            field, rest = (rest, "") if end < 0 else (rest[:end], rest[end:])
        if not field:
            raise UsageError(f"{option}: an empty field")
        yield field
        if not rest:
            return
        if rest[0] != ",":
            raise UsageError(f"{option}: a quoted field must end at a comma")
        rest = rest[1:]


def _quoted(rest: str, option: str) -> tuple[str, str]:
    field = ""
    while True:
        end = rest.find('"')
        if end < 0:
            raise UsageError(f"{option}: a quote is not closed")
        field += rest[:end]
        if rest[end + 1 : end + 2] != '"':
            return field, rest[end + 1 :]
        field += '"'
        rest = rest[end + 2 :]


def _tmpfs(target: str, options: list[str], option: str) -> dict[str, Any]:
    values = {"size": "", "mode": "1777"}
    flags = {"noexec": True, "ro": False}
    for name in options:
        key, equals, value = name.partition("=")
        if equals and key in ("size", "mode", "uid", "gid", "nr_inodes"):
            values[key] = _tmpfs_value(key, value, option)
        elif name in ("ro", "rw", "exec", "noexec"):
            flags["noexec" if name.endswith("exec") else "ro"] = name in ("ro", "noexec")
        elif name not in ("nosuid", "nodev"):
            raise UsageError(
                f"{option}: unknown option {name!r}",
                fix="options are size, mode, uid, gid, nr_inodes, ro, rw, exec, noexec",
            )
    names = ["nosuid", "nodev", *[name for name, on in flags.items() if on]]
    return {
        "destination": _target(target, option),
        "type": "tmpfs",
        "source": "tmpfs",
        "options": names + [f"{key}={value}" for key, value in values.items() if value],
    }


def _tmpfs_value(key: str, value: str, option: str) -> str:
    if key == "size":
        try:
            return str(units.parse_size(value))
        except UsageError as error:
            raise UsageError(f"{option}: {error.message}", fix=error.fix) from None
    if not value or len(value) > 10 or not set(value) <= set("0123456789"):
        raise UsageError(f"{option}: {key} must be a number, not {value!r}")
    if key == "mode" and (not set(value) <= set("01234567") or int(value, 8) > 0o7777):
        raise UsageError(f"{option}: mode must be octal and at most 7777")
    return value


def _source(text: str, option: str) -> str:
    if not text or "\0" in text:
        raise UsageError(
            f"{option}: no source", fix="--mount type=bind,src=/a,dst=/b,ro, or -v /a:/b:ro"
        )
    if "/" not in text and text not in (".", ".."):
        raise UsageError(
            f"{option}: the source must be a path",
            cause="volumes by name are not kept",
            fix=f"write ./{text} for what lies in this directory",
        )
    # The operator's path: resolved now, so that config.json says what will be mounted.
    path = os.path.realpath(text)
    if not os.path.exists(path):
        raise MinirunError(f"{option}: {path} does not exist", fix=f"mkdir -p {path}")
    return path


def _target(text: str, option: str) -> str:
    """Check a path in the container: absolute, plain, not one of those the runtime mounts."""
    if not text.startswith("/") or "\0" in text or len(text) > _PATH_MAX:
        raise UsageError(f"{option}: the target must be an absolute path")
    if ".." in text.split("/"):
        raise UsageError(f"{option}: the target must not hold '..'")
    path = "/" + "/".join([part for part in text.split("/") if part not in ("", ".")])
    if path == "/":
        raise UsageError(f"{option}: the target must not be /", fix="that is what --rootfs is for")
    for reserved in _RESERVED:
        if _within(path, reserved) and not any(_within(path, name) for name in _RESERVED_EXCEPT):
            raise UsageError(f"{option}: {reserved} is the container's own")
    return path


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def danger(volume: Volume, private: Sequence[str]) -> str:
    """Say what a volume would hand over of the host; "" when nothing worth refusing.

    `private` are directories of minirun's own, such as the data directory. Raises MinirunError
    where the source has become something else since its links were followed.
    """
    source, status = volume.source, _status(volume)
    volume.identity = status.st_dev, status.st_ino
    if os.path.basename(source) in _ENGINE_SOCKETS:
        return f"{source} lets the container command an engine that runs as root"
    if stat.S_ISSOCK(status.st_mode) and _within(source, "/run"):
        return f"{source} is a socket of the host"
    same = next((path for path in (*_HOST, *private) if _same(source, status, path)), "")
    if same:
        return f"{same} is the host's own"
    above = next((path for path in (*_HOST_BELOW, *private) if _within(source, path)), "")
    below = next((path for path in private if _within(path, source)), "")
    if above or below:
        return f"{source} lies in {above}" if above else f"{source} holds {below}"
    same = next((path for path in _HOST_WRITABLE if _same(source, status, path)), "")
    return f"{same} would be writable" if same and not volume.readonly else ""


def _status(volume: Volume) -> os.stat_result:
    """Look at a source without following links: `_source` has, and who writes there makes more."""
    # With the dot: else a file system that is mounted on demand is not yet (openat2(2), O_PATH).
    path = f"{volume.source}/." if os.path.isdir(volume.source) else volume.source
    try:
        fd = openat2(AT_FDCWD, path, os.O_PATH, resolve=RESOLVE_NO_SYMLINKS)
    except OSError as error:
        raise MinirunError(
            f"{volume.option}: {volume.source} changed while it was looked at: "
            f"{(error.strerror or '').lower()}",
            cause="others can write to a directory above it",
        ) from None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _same(path: str, status: os.stat_result, other: str) -> bool:
    """Tell whether two paths are one directory, also where one is a bind mount of the other."""
    if path == other:
        return True
    try:
        return os.path.samestat(status, os.stat(other))
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return False
