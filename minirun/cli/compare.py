"""compare: the same root filesystem as a container and as a virtual machine, measured here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import click

from minirun import tether
from minirun.compare import accelerator, bootfile, chart, machine
from minirun.compare.comparison import Outcome, compare, own_words
from minirun.compare.document import document
from minirun.compare.document import schema as document_schema
from minirun.compare.machine import Plan
from minirun.compare.measure import Effort
from minirun.compare.report import report
from minirun.errors import MinirunError
from minirun.jsontext import dumps
from minirun.log import printable
from minirun.rootfs import store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Programs that make a PNG of an SVG file: their words, with the files in the place of {}.
_PAINTERS = (
    ("rsvg-convert", "--output={png}", "{svg}"),
    ("inkscape", "--export-type=png", "--export-filename={png}", "{svg}"),
    ("magick", "{svg}", "{png}"),
    ("convert", "{svg}", "{png}"),
)
_PATH = "/usr/local/bin:/usr/bin:/bin"
_MACHINES = sorted({name for names in machine.ARCHITECTURES.values() for name in names})


@click.command("compare")
@click.option(
    "--rootfs", default="busybox", show_default=True, metavar="NAME|DIR",
    help="root filesystem that both sides run (minirun rootfs list)",
)  # fmt: skip
@click.option("--data", metavar="DIR", help=f"data directory (default: {store.DATA})")
@click.option("--kernel", metavar="FILE", help="kernel of the machine (default: /boot's)")
@click.option(
    "--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True,
    help="what runs the machine's instructions; auto: KVM if guests run on the CPU, see `virt`",
)  # fmt: skip
@click.option(
    "--machine", "kind", type=click.Choice(_MACHINES),
    help="QEMU's machine type (default: q35; virt on arm64)",
)  # fmt: skip
@click.option("--quick", is_flag=True, help="fewer samples and smaller work: a minute or two")
@click.option("--json", "json_file", metavar="FILE", help="write JSON; -: to stdout, no table")
@click.option("--schema", is_flag=True, help="print the JSON schema of --json")
@click.option("--chart", "chart_file", metavar="FILE", help="draw it: FILE.svg or FILE.png")
def command(
    *,
    rootfs: str,
    data: str | None,
    kernel: str | None,
    accel: str,
    kind: str | None,
    quick: bool,
    json_file: str | None,
    schema: bool,
    chart_file: str | None,
) -> None:
    """Measure the same root filesystem as a container and as a virtual machine, on this machine.

    The container is `minirun run --rootfs`. The machine is QEMU with a kernel and the root
    filesystem in its memory, on KVM where guests run on the CPU, else emulated, which is labelled
    and never called what a machine costs. Needs root, QEMU (apt-get install qemu-system-x86) and a
    kernel: --kernel, or the newest in /boot. Debian's is got, without installing it, by `apt-get
    download linux-image-VERSION-cloud-amd64` and `dpkg -x linux-image-*.deb DIR`: it is then
    DIR/boot/vmlinuz-VERSION.
    """
    if schema:
        click.echo(document_schema(), nl=False)
        return
    if os.geteuid() != 0:
        raise MinirunError(
            "compare needs root: it makes containers with root filesystems of the store",
            fix="sudo minirun compare",
        )
    tether.require()
    check_files(json_file, chart_file)
    architecture = os.uname().machine
    found = store.find(store.data_directory(data, os.environ), rootfs)
    qemu = machine.find_qemu(architecture)
    kinds = machine.ARCHITECTURES[architecture]
    if kind and kind not in kinds:
        raise MinirunError(f"flag --machine {kind}: not on {architecture}: {' or '.join(kinds)}")
    image = bootfile.find(kernel, architecture)
    chosen = accelerator.choose(accel)
    _stop_cleanly()

    def plan(memory: int) -> Plan:
        return Plan(qemu, kind or kinds[0], chosen, image, memory)

    tell = _progress()
    tell(f"kernel {image.path}; {chosen.label}")
    made, result = compare(found, own_words(), plan, Effort(quick=quick), tell)
    tell("")
    name = f"{found.name or found.path} ({found.version})" if found.version else found.name
    outcome = Outcome(made, name or found.path, _version(qemu), quick=quick, result=result)
    _write(outcome, json_file, chart_file)


def check_files(json_file: str | None, chart_file: str | None) -> None:
    """Refuse what could not be written at the end, before minutes are spent."""
    if chart_file:
        if not chart_file.endswith((".svg", ".png")):
            raise MinirunError(f"flag --chart {chart_file}: must end in .svg or .png")
        if chart_file.endswith(".png"):
            _painter()
    for flag, path in (("--json", json_file), ("--chart", chart_file)):
        place = os.path.dirname(path or "") or "."
        if path and path != "-" and not (os.path.isdir(place) and not os.path.isdir(path)):
            raise MinirunError(f"flag {flag} {path}: no such directory, or one itself")


def _stop_cleanly() -> None:
    """Python dies of these without cleaning up; what was started is to go."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda caught, _frame: sys.exit(128 + caught))


def _progress() -> Callable[[str], None]:
    if not sys.stderr.isatty():
        return lambda text: click.echo(f"compare: {printable(text)}", err=True) if text else None
    return lambda text: click.echo(
        f"\r\033[K{f'compare: {printable(text)}' if text else ''}", err=True, nl=False
    )


def _version(qemu: str) -> str:
    done = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=False)
    words = done.stdout.split()
    return words[3] if len(words) > 3 else "unknown"


def _write(outcome: Outcome, json_file: str | None, chart_file: str | None) -> None:
    text = dumps(document(outcome), "  ") + "\n"
    if json_file == "-":
        click.echo(text, nl=False)
    else:
        click.echo(printable_lines(report(outcome)), nl=False)
        if json_file:
            _save(json_file, text)
    if chart_file:
        _draw(outcome, chart_file)


def printable_lines(text: str) -> str:
    """Keep a terminal from obeying what a root filesystem or a firmware says."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _save(path: str, text: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise MinirunError(f"{path}: {(error.strerror or '').lower()}") from None


def _draw(outcome: Outcome, path: str) -> None:
    if path.endswith(".svg"):
        _save(path, chart.svg(outcome))
        return
    words = _painter()
    between = f"{path.removesuffix('.png')}.svg"
    _save(between, chart.svg(outcome))
    command_line = [word.format(svg=between, png=path) for word in words]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise MinirunError(
            f"{path}: {os.path.basename(words[0])}: {printable(said)}",
            fix=f"the chart is in {between}; another program: apt-get install librsvg2-bin",
        )
    os.unlink(between)


def _painter() -> tuple[str, ...]:
    for words in _PAINTERS:
        path = shutil.which(words[0], path=_PATH)
        if path:
            return (path, *words[1:])
    raise MinirunError(
        "flag --chart: nothing here makes a PNG of an SVG",
        fix="write FILE.svg, or: apt-get install librsvg2-bin",
    )
