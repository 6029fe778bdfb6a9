"""The virtual machine: QEMU with a kernel, the root filesystem in memory, and one serial line."""

from __future__ import annotations

import os
import shutil
import socket
import time

from minirun import jsontext
from minirun.compare import disk
from minirun.compare.child import Child
from minirun.compare.guest import INIT
from minirun.compare.session import Session, Talking
from minirun.errors import MinirunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from minirun.compare.accelerator import Accelerator
    from minirun.compare.bootfile import BootFile

# The first is the default. microvm starts sooner, but an ordinary kernel that is emulated there on
# a busy host may fail to calibrate its clock, for which it has the PIT alone, and then hang.
ARCHITECTURES = {"x86_64": ("q35", "microvm"), "aarch64": ("virt",)}
_PACKAGES = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}
_DETAILS = {"microvm": "microvm,rtc=on", "q35": "q35,usb=off,vmport=off", "virt": "virt"}
_CONSOLE = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_READY = 30.0  # seconds for QEMU itself, which takes a tenth of one


def find_qemu(architecture: str) -> str:
    """Return the path of QEMU for this architecture. Raises MinirunError if it is missing."""
    if architecture not in ARCHITECTURES:
        raise MinirunError(f"compare is not supported on {architecture}: x86_64 and aarch64 only")
    name = f"qemu-system-{architecture}"
    found = shutil.which(name, path=_PATH)
    if found is None:
        raise MinirunError(
            f"{name} is not installed", fix=f"apt-get install {_PACKAGES[architecture]}"
        )
    return found


class Plan:
    """How every machine is made. `memory` and the sizes are bytes."""

    def __init__(
        self,
        qemu: str,
        machine: str,
        accelerator: Accelerator,
        kernel: BootFile,
        memory: int,
    ) -> None:
        self.qemu, self.machine, self.accelerator = qemu, machine, accelerator
        self.kernel, self.memory = kernel, memory

    def command(
        self, initrd: str, control: int, architecture: str, images: Sequence[str] = ()
    ) -> list[str]:
        """Return QEMU's command line; `control` is the descriptor of its monitor's socket.

        `images` are of one disk: see `disk.arguments`.
        """
        cpu = "host" if self.accelerator.name == "kvm" else "max"
        x86 = " reboot=t" if architecture == "x86_64" else ""  # microvm has no other way to end
        kernel = f"console={_CONSOLE[architecture]} quiet loglevel=1 panic=-1{x86} rdinit=/{INIT}"
        # fmt: off
        return [
            self.qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-S",
            "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-machine", _DETAILS[self.machine], "-accel", self.accelerator.name, "-cpu", cpu,
            "-smp", "1", "-m", f"{self.memory >> 20}M",
            "-kernel", self.kernel.path, "-initrd", initrd, "-append", kernel,
            "-chardev", f"socket,id=control,fd={control}", "-mon", "chardev=control,mode=control",
            "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
            *disk.arguments(self.machine, images),
        ]
        # fmt: on


class Machine(Talking):
    """One virtual machine. It stands still until `go`; `ready` is then, in monotonic seconds."""

    def __init__(self, plan: Plan, initrd: str, log: str, images: Sequence[str] = ()) -> None:
        self.session = Session()
        self.control, theirs = socket.socketpair()
        self.heard = b""
        with theirs:
            command = plan.command(initrd, theirs.fileno(), os.uname().machine, images)
            self.child = Child(command, log, [theirs.fileno()])
        self.ready = 0.0

    def go(self) -> None:
        """Let it run, once QEMU has made it. Raises MinirunError if QEMU refused to."""
        self.ask("qmp_capabilities")
        self.ask("cont")
        self.ready = time.monotonic()

    def ask(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Give QEMU's monitor a command (QMP) and return its answer. Raises MinirunError."""
        self.control.settimeout(_READY)
        try:
            order = {"execute": command, "arguments": arguments or {}}
            self.control.sendall(jsontext.dumps(order).encode() + b"\n")
            while True:
                answer = self._receive()
                if "error" in answer:
                    raise MinirunError(f"QEMU: {command}: {answer['error'].get('desc')}")
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            self.child.wait(1)
            said = self.child.last_words() or f": {error}"
            raise MinirunError(f"{self.child.name} did not start{said}") from None

    def _receive(self) -> Any:
        while b"\n" not in self.heard:
            data = self.control.recv(65536)
            if not data:
                raise ConnectionResetError("it closed its monitor")
            self.heard += data
        line, _, self.heard = self.heard.partition(b"\n")
        return jsontext.loads(line.decode("utf-8", "replace"))

    @property
    def pids(self) -> list[int]:
        """The processes that it consists of."""
        return [self.child.pid]

    def end(self) -> None:
        """Take it away."""
        self.control.close()
        self.child.end()
