"""rootfs: get, list and remove root filesystems."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import closing

import click
from click.shell_completion import CompletionItem

from minirun import jsontext
from minirun.errors import MinirunError
from minirun.log import printable
from minirun.rootfs import busybox as busybox_
from minirun.rootfs import change, install, store
from minirun.rootfs.unpack import MAX_BYTES, MAX_ENTRIES
from minirun.units import format_size, parse_count, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_LINE_EVERY = 5.0  # seconds between two lines of progress where there is no terminal
_BAR_AFTER = 0.3
_PADDING = 3


@click.group()
@click.option(
    "--data", metavar="DIR", help=f"data directory (default: $MINIRUN_DATA, or {store.DATA})"
)
@click.pass_context
def rootfs(ctx: click.Context, data: str | None) -> None:
    """Get, list and remove root filesystems.

    A container made with `minirun run --rootfs NAME` shares the root filesystem NAME with others
    and writes into a layer of its own.
    """
    ctx.obj = data
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Python dies of these without cleaning up; the half that was made is to go.
        signal.signal(number, lambda caught, _frame: sys.exit(128 + caught))


command = rootfs


def _data(function: Callable[..., Any]) -> Callable[..., Any]:
    def chosen(ctx: click.Context, _param: click.Parameter, value: str | None) -> str:
        return store.data_directory(value or ctx.obj, os.environ)

    return click.option(
        "--data", metavar="DIR", callback=chosen, help=f"data directory (default: {store.DATA})"
    )(function)


def _quiet(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("-q", "--quiet", is_flag=True, help="print the name only")(function)


def _making(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that all makers of root filesystems have."""
    function = click.option("--name", metavar="NAME", help="what to call it")(function)
    function = click.option(
        "--replace", is_flag=True, help="replace one that has the name already"
    )(function)
    return _quiet(_data(function))


def _unpacking(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of what unpacks an archive."""
    function = click.option(
        "--sha256", default="", metavar="HEX", help="digest that the archive must have"
    )(function)
    function = click.option(
        "--max-size",
        default=str(MAX_BYTES),
        metavar="SIZE",
        help="most bytes that it may unpack to (default 16g)",
    )(function)
    return click.option(
        "--max-entries",
        default=str(MAX_ENTRIES),
        metavar="N",
        help="most files that it may hold (default 1000000)",
    )(function)


@rootfs.command()
@click.argument("image", metavar="IMAGE[:VERSION]")
@click.option(
    "--mirror", metavar="URL", help="where to get it (default: $MINIRUN_MIRROR, Alpine's)"
)
@click.option("--arch", metavar="ARCH", help="x86_64 or aarch64 (default: this machine's)")
@_unpacking
@_making
def pull(  # noqa: PLR0917 - click calls it by name
    image: str,
    mirror: str | None,
    arch: str | None,
    sha256: str,
    max_size: str,
    max_entries: str,
    **making: Any,
) -> None:
    """Get a distribution's root filesystem: alpine, alpine:3.20, alpine:3.20.3, alpine:edge.

    Without a version it is the newest release. The tarball $MINIRUN_ROOTFS_TARBALL is used if it is
    set, then one in the project's rootfs/, then the mirror; --mirror goes there directly. The
    archive's checksum is verified before it is unpacked.
    """
    from minirun.rootfs import pull as puller  # with urllib, ssl and yaml: 150 ms

    name = making["name"] or puller.default_name(image)
    order = _order(name, making, sha256, max_size, max_entries)
    with closing(order.listener):
        made = puller.pull(image, order, os.environ, mirror=mirror, arch=arch)
    _tell(made, making["quiet"])


@rootfs.command("import")
@click.argument("file", metavar="FILE|-")
@_unpacking
@_making
def import_(file: str, sha256: str, max_size: str, max_entries: str, **making: Any) -> None:
    """Make a root filesystem of a tar archive; - is standard input.

    Plain, gzip, xz, bzip2 (and, from Python 3.14, zstd) are told apart by their content. Device
    nodes are left out. A container of another engine becomes one by

        docker export CONTAINER | sudo minirun rootfs import - --name NAME
    """
    if file == "-" and not making["name"]:
        raise click.UsageError("an archive from standard input needs --name NAME")
    name = making["name"] or install.name_from_file(file)
    order = _order(name, making, sha256, max_size, max_entries)
    with closing(order.listener):
        made = install.import_file(file, order)
    _tell(made, making["quiet"])


@rootfs.group()
def build() -> None:
    """Make a root filesystem of what this machine has."""


@build.command()
@click.option("--binary", metavar="FILE", help="the program (default: /bin/busybox)")
@_making
def busybox(binary: str | None, **making: Any) -> None:
    """Make a small root filesystem of Debian's busybox-static, without a network."""
    order = _order(making["name"] or "busybox", making)
    with closing(order.listener):
        made = busybox_.build(order, binary)
    _tell(made, making["quiet"])


@rootfs.command("list")
@click.option("--format", "format_", type=click.Choice(["table", "json"]), default="table")
@_quiet
@_data
def list_(format_: str, quiet: bool, data: str) -> None:
    """List the root filesystems."""
    base = store.base_directory(data)
    names = store.names(base)
    if quiet:
        click.echo("".join(f"{name}\n" for name in names), nl=False)
        return
    found = [_read(base, name) for name in names]
    if format_ == "json":
        click.echo(jsontext.dumps([one.encode() for one in found], "  "))
        return
    rows: list[tuple[str, ...]]
    rows = [("NAME", "VERSION", "SIZE", "CREATED", "DIGEST", "SOURCE")]
    rows += [_row(one) for one in found]
    widths = [max(map(len, column)) + _PADDING for column in zip(*rows, strict=True)]
    for row in rows:
        line = "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def _complete_name(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    data = store.data_directory(ctx.params.get("data") or None, os.environ)
    try:
        names = store.names(store.base_directory(data))
    except MinirunError:
        return []
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


@rootfs.command()
@click.argument("names", shell_complete=_complete_name, nargs=-1, required=True, metavar="NAME...")
@_quiet
@_data
def rm(names: tuple[str, ...], quiet: bool, data: str) -> None:
    """Remove root filesystems that no container uses."""
    change.require_root()
    base = store.base_directory(data)
    there = store.names(base)
    for name in map(store.stored_name, names):
        if name not in there:
            raise store.missing(base, name, wanted=False)  # before any is removed
    for name in dict.fromkeys(map(store.stored_name, names)):
        change.remove(data, name)
        click.echo(name if quiet else f"removed {name}")


def _order(
    name: str,
    making: dict[str, Any],
    sha256: str = "",
    max_size: str = str(MAX_BYTES),
    max_entries: str = str(MAX_ENTRIES),
) -> install.Order:
    return install.Order(
        making["data"],
        name,
        replace=making["replace"],
        sha256=sha256,
        max_bytes=parse_size(max_size),
        max_entries=parse_count(max_entries, low=1),
        listener=install.Listener() if making["quiet"] else _listener(),
    )


def _tell(made: store.RootFS, quiet: bool) -> None:
    if quiet:
        click.echo(made.name)
        return
    version = f" {made.version}," if made.version else ""
    click.echo(f"{made.name}:{version} {format_size(made.size)} in {made.entries} files")
    if sys.stderr.isatty():
        click.echo(f"  try it: sudo minirun run --rootfs {made.name} -t test sh", err=True)


def _read(base: str, name: str) -> store.RootFS:
    try:
        return store.read(base, name)
    except (MinirunError, FileNotFoundError):
        return store.RootFS(name=name, source="damaged")


def _row(one: store.RootFS) -> tuple[str, ...]:
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.created)) if one.created else "-"
    digest = one.digest.removeprefix("sha256:")[:12] or "-"
    return (
        one.name,
        one.version or "-",
        format_size(one.size),
        created,
        digest,
        printable(one.source),
    )


class _Lines(install.Listener):
    """Tells on stderr, one line after the other."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def note(self, text: str) -> None:
        click.echo(printable(text), err=True)

    def warn(self, text: str) -> None:
        click.echo(f"warning: {printable(text)}", err=True)

    def progress(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last >= _LINE_EVERY:
            self.last = now
            of = f" of {format_size(total)}" if total else ""
            self.note(f"{what}: {format_size(done)}{of}")


class _Bar(_Lines):
    """Tells on a terminal, with a bar for what takes longer than a blink."""

    def __init__(self) -> None:
        super().__init__()
        self.what = ""
        self.since = 0.0
        self.bar: Any = None

    def progress(self, what: str, done: int, total: int) -> None:
        if what != self.what:
            self.close()
            self.what, self.since = what, time.monotonic()
        if self.bar is None and time.monotonic() - self.since > _BAR_AFTER:
            self.bar = _make_bar()
            self.task = self.bar.add_task(what, total=total or None)
            self.bar.start()
        if self.bar is not None:
            self.bar.update(self.task, completed=done)

    def note(self, text: str) -> None:
        self.close()
        super().note(text)

    def warn(self, text: str) -> None:
        self.close()
        super().warn(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _listener() -> install.Listener:
    return _Bar() if sys.stderr.isatty() else _Lines()


def _make_bar() -> Any:
    from rich.console import Console  # 100 ms, for who watches a download
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    width = shutil.get_terminal_size().columns
    columns = [TextColumn("{task.description}")] if width > 100 else []
    return Progress(
        *columns,
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=Console(stderr=True),
    )
