"""Prove `minirun virt` on what looks like an AMD host without a hypervisor, and is emulated.

QEMU emulates AMD-V itself (TCG), so no extension is needed here. The kernel and the programs are
the test machine's (scripts/vm), without its services; minirun and click come on a disk. In there
the module kvm_amd is loaded, and minirun must find AMD-V, run its guests and say that they ran on
the CPU; another user must be told what is in the way; before the module is loaded, that it is not.
"""

from __future__ import annotations

import argparse
import io
import json
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.vm.common import SCRIPTS, Failure, say
from lib.vm.image import build, install_host_tools
from lib.vm.machine import Machine

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 900  # seconds; a quiet machine takes a third of a minute, all in all
CPU = "EPYC,-hypervisor,+svm,+npt"
KERNEL = (
    "root=/dev/vda rw console=ttyS0 panic=-1 loglevel=3 fsck.mode=skip mitigations=off "
    'init=/bin/sh -- -c "mkdir /tmp/in; tar -xf /dev/vdb -C /tmp/in --no-same-owner; '
    'exec sh /tmp/in/inside"'
)
END = "@@ end file 0\n"  # the whole line: the console is read while it is written
# What is asked inside: the name under which the answer is checked, the user, the words.
ASKED = (
    ("module missing", "root", "--json"),
    ("root", "root", "--json"),
    ("user", "nobody", "--json"),
    ("is kvm", "root", "--is kvm"),
    ("is nested", "root", "--is nested"),
    ("report", "root", ""),
    ("recording", "root", "--record /tmp/recording --quiet --is vm"),
)
INSIDE = """
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev 2>/dev/null
boot='import sys; sys.path.append("/tmp/in"); from minirun.launcher import main; main()'
virt() { # NAME USER WORD...
    name=$1 user=$2; shift 2
    as=''; [ "$user" = root ] || as='setpriv --reuid=65534 --regid=65534 --clear-groups'
    echo "@@ begin $name"
    $as python3 -ISB -c "$boot" virt "$@"
    echo "@@ end $name $?"
}
chmod -R a+rX /tmp /tmp/in
@FIRST@
modprobe kvm_amd
@REST@
echo "@@ begin file"; cat /tmp/recording/host.json; echo "@@ end file 0"
sync; echo o >/proc/sysrq-trigger; sleep 60
"""


def disk(place: Path) -> Path:
    """Write the tar that is the second disk: minirun, click, and what is done inside."""
    import click

    lines = [f'virt "{name}" {user} {words}' for name, user, words in ASKED]
    script = INSIDE.replace("@FIRST@", lines[0]).replace("@REST@", "\n".join(lines[1:]))
    path = place / "disk.tar"
    with tarfile.open(path, "w") as archive:
        for name, source in (("minirun", SCRIPTS.parent / "minirun"), ("click", click.__path__[0])):
            archive.add(source, name, filter=_plain)
        entry = tarfile.TarInfo("inside")
        entry.size = len(script.encode())
        archive.addfile(entry, io.BytesIO(script.encode()))
    return path


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if entry.name.endswith("__pycache__") else entry


def boot(place: Path, cpu: str) -> str:
    """Run the machine to its end; return what its console said. Raises Failure."""
    image = build(Machine.images_in_use())
    layer, console = place / "root.qcow2", place / "console"
    backing = ("-F", "raw", "-b", image.file("root.img"))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *backing, layer], check=True)
    # fmt: off
    command: list[str | Path] = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-machine", "q35,usb=off,vmport=off", "-accel", "tcg", "-cpu", cpu, "-m", "768M",
        "-kernel", image.file("vmlinuz"), "-initrd", image.file("initrd"), "-append", KERNEL,
        "-drive", f"if=virtio,file={layer},format=qcow2,cache=unsafe",
        "-drive", f"if=virtio,file={disk(place)},format=raw,read-only=on",
        "-device", "virtio-rng-pci", "-serial", f"file:{console}",
    ]
    # fmt: on
    began = time.monotonic()
    log = place / "qemu.log"  # which features of that CPU are not emulated
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as machine,
    ):
        try:
            while machine.poll() is None and END not in read(console):
                if time.monotonic() - began > LIMIT:
                    raise Failure(f"not finished after {LIMIT} s:\n{read(console)[-2000:]}")
                time.sleep(0.5)
        finally:
            machine.kill()
    if END not in read(console):
        raise Failure(f"it ended too early:\n{read(log)[-500:]}\n{read(console)[-2000:]}")
    say(f"the look-alike ran for {time.monotonic() - began:.0f} s")
    return read(console)


def read(path: Path) -> str:
    """Return a file's text; "" while there is none."""
    return path.read_text(errors="replace").replace("\r", "") if path.exists() else ""


def answers(console: str) -> dict[str, tuple[int, str]]:
    """Give each answer by its name: the exit status and the text."""
    found = {}
    for part in console.split("@@ begin ")[1:]:
        name, _, rest = part.partition("\n")
        text, _, end = rest.partition(f"@@ end {name} ")
        found[name] = (int(end.split("\n")[0] or -1), text)
    return found


def wrong(found: dict[str, tuple[int, str]]) -> Iterator[str]:
    """Give what is not as it must be."""

    def check(what: str, value: Any, wanted: Any) -> Iterator[str]:
        if value != wanted:
            yield f"{what}: {value!r}, and not {wanted!r}"

    missing = [name for name, _, _ in ASKED if name not in found]
    if missing:
        yield f"not answered: {', '.join(missing)}"
        return
    for name, code in (("module missing", "NOT_LOADED"), ("root", "KVM_OK"), ("user", "PERM_NODE")):
        report = json.loads(found[name][1])
        yield from check(f"{name}: verdict", report["verdict"]["code"], code)
        yield from check(f"{name}: status", found[name][0], report["verdict"]["exit"])
    facts = {name: fact["value"] for name, fact in json.loads(found["root"][1])["facts"].items()}
    wanted = {
        "cpu.extension": "AMD-V",
        "cpu.svm.raw": True,
        "cpu.svm.flag": True,
        "cpu.hypervisor": False,
        "cpu.lock": "none",
        "kvm.paging": "NPT",
        "kvm.nested": True,
        "kvm.driver": "loaded",
    }
    for name, value in wanted.items():
        yield from check(name, facts.get(name), value)
    for mode in ("real", "ring0", "ring3"):
        told = facts.get(f"probe.{mode}") or {}
        yield from check(f"{mode}: ran", told.get("ran"), True)
        if not (told.get("emulated") is not None and told["emulated"] < 0.01):
            yield f"{mode}: emulated {told.get('emulated')!r}"
    yield from check("--is kvm", found["is kvm"], (0, "yes\n"))


def main() -> None:
    """Boot it, print its report, and check its answers; the exit status is 1 if one is wrong."""
    parser = argparse.ArgumentParser(prog="scripts/virt-lookalike", description=__doc__)
    parser.add_argument("--recording", metavar="FILE", help="keep what --record wrote inside")
    parser.add_argument("--cpu", help="another CPU model of QEMU's: its report, and no checks")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    install_host_tools()
    with tempfile.TemporaryDirectory(prefix="minirun-lookalike-") as place:
        found = answers(boot(Path(place), arguments.cpu or CPU))
    print(found.get("report", (0, "no report\n"))[1])
    if arguments.recording and "file" in found:
        Path(arguments.recording).write_text(found["file"][1])
    if arguments.cpu:
        return
    problems = list(wrong(found))
    for problem in problems:
        print(f"wrong: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)
    print("the look-alike is judged as it must be")


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        print(f"virt-lookalike: {failure}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
