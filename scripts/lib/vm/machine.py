"""One virtual machine: its disks, its process, its life from start to stop."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lib.vm.common import SCRIPTS, Failure, cache_dir, locked, quietly, say
from lib.vm.connection import SSH_FAILED, Connection
from lib.vm.image import suite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lib.vm.connection import Stream
    from lib.vm.image import Image

MEMORY = "2560M"
SPARE_DISK = 1 << 30
SWAP_DISK = 256 << 20
# Emulated: the instructions that Debian's programs profit from; "max" makes all of it slower.
# Without AMD-V: a guest in a machine that QEMU emulates with two CPUs has once hung both, and
# `virt` starts guests where it can (scripts/virt-lookalike has AMD-V, and one CPU).
# And where Linux is 6.8 without cmpxchg16b: QEMU 7.2 leaves a register's bits in the flags after
# it, of which one is the trap flag or the like, and the kernel's allocator (kmem_cache_alloc) dies.
TCG_CPU = "qemu64,-svm,+ssse3,+sse4.1,+sse4.2,+popcnt,+smep"
TCG_WITHOUT = {"noble": ",-cx16"}
KERNEL_COMMAND_LINE = (
    "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off fsck.mode=skip hugepages=8 psi=1 "
    "systemd.show_status=1 SYSTEMD_COLORS=0 loglevel=5"
)

KIND = {"kvm": "KVM", "tcg": "emulated, about a minute"}
BOOT_TIMEOUT = {"kvm": 300, "tcg": 1800}
KVM_SILENCE = 20  # seconds without a byte on the console: this KVM does not run a kernel
STOP_TIMEOUT = 60
LIFETIME = "12h"


def default_name() -> str:
    """A machine per checkout: two people's tests never meet in one."""
    checkout = SCRIPTS.parent
    return f"{checkout.name}-{hashlib.sha256(os.fsencode(checkout)).hexdigest()[:6]}"


class Machine:
    """One virtual machine and the private directory with all that belongs to it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = cache_dir() / "machines" / name
        self.console = self.directory / "console.log"

    @staticmethod
    def all() -> list[Machine]:
        found = sorted((cache_dir() / "machines").glob("*"))
        return [Machine(path.name) for path in found if path.is_dir()]

    def lock(self) -> contextlib.AbstractContextManager[None]:
        lock = self.directory.with_name(f"{self.name}.lock")
        return locked(lock, f"machine {self.name} is being started or stopped; waiting")

    @property
    def state(self) -> dict[str, str]:
        try:
            found: dict[str, str] = json.loads((self.directory / "state.json").read_bytes())
        except FileNotFoundError:
            return {}
        return found

    def save(self, **changes: str) -> None:
        new = self.directory / "state.json.new"
        new.write_text(json.dumps({**self.state, **changes}, indent=2) + "\n")
        new.rename(self.directory / "state.json")

    def pid(self) -> int | None:
        """The emulator's process, if it lives and is ours: a pid alone can be anybody's."""
        try:
            pid = int((self.directory / "pid").read_text())
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid if os.fsencode(self.directory / "pid") in arguments else None

    @classmethod
    def images_in_use(cls) -> set[str]:
        return {machine.state["image"] for machine in cls.all() if machine.pid()}

    def connection(self) -> Connection:
        state = self.state
        return Connection(self.directory, Path(state["image"]), state["port"])

    def run(
        self,
        command: Sequence[str],
        *,
        terminal: bool = False,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a command in the machine as root."""
        done = self.connection().run(command, terminal=terminal, stdin=stdin, stdout=stdout)
        if done.returncode == SSH_FAILED and not self.pid():
            raise Failure(f"the machine has ended; console: {self.console}")
        return done

    def require_running(self) -> None:
        if not self.pid():
            died = self.state.get("ready")
            how = f"has died (console: {self.console})" if died else "is not running"
            raise Failure(f"machine {self.name} {how}; scripts/vm start boots it")

    # -- start

    def start(self, image: Image, cpus: int) -> None:
        if self.pid() and self.state.get("ready"):
            say(f"machine {self.name} is running")
            return
        self.stop(now=True)
        choice = os.environ.get("MINIRUN_VM_ACCEL", "auto")
        if choice not in ("auto", "kvm", "tcg"):
            raise Failure(f"MINIRUN_VM_ACCEL is {choice!r}; it can be auto, kvm or tcg")
        try:
            if choice == "kvm" or (choice == "auto" and kvm_offered()):
                self.boot(image, "kvm", cpus)
                if self.speaks(KVM_SILENCE):
                    self.wait_ready("kvm")
                    return
                silence = f"no word from the kernel in {KVM_SILENCE} s under KVM"
                if choice == "kvm":
                    raise Failure(f"{silence}; MINIRUN_VM_ACCEL=tcg emulates")
                say(f"{silence}: emulating instead (slow)")
                self.stop(now=True)
            self.boot(image, "tcg", cpus)
            self.wait_ready("tcg")
        except BaseException:
            self.stop(now=True)
            raise

    def boot(self, image: Image, accelerator: str, cpus: int) -> None:
        self.make_disks(image)
        port = free_port()
        where = {"image": os.fspath(image.directory), "port": str(port)}
        self.save(**where, accelerator=accelerator, ready="")
        self.console.write_bytes(b"")
        virtual_cpu = ["-accel", "kvm", "-cpu", "host"]
        if accelerator == "tcg":
            cpu = TCG_CPU + TCG_WITHOUT.get(suite(), "")
            virtual_cpu = ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", cpu]
        # fmt: off
        command: list[str | Path] = [
            "qemu-system-x86_64", "-name", f"minirun-{self.name}",
            "-pidfile", self.directory / "pid",
            "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-machine", "q35,usb=off,vmport=off", *virtual_cpu, "-smp", str(cpus),
            "-m", MEMORY, "-kernel", image.file("vmlinuz"), "-initrd", image.file("initrd"),
            "-append", KERNEL_COMMAND_LINE,
            *disk("root", self.directory / "root.qcow2", "qcow2"),
            *disk("spare", self.directory / "spare.img", "raw"),
            *disk("swap", self.directory / "swap.img", "raw"),
            "-device", "virtio-rng-pci",
            "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22",
            "-device", "virtio-net-pci,netdev=net,romfile=",
            "-serial", f"file:{self.console}",
        ]
        # fmt: on
        log = self.directory / "qemu.log"
        # No -daemonize, which the sandbox forbids; QEMU writes its pid once it is set up.
        with log.open("wb") as output:
            emulator = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            while not self.pid():
                if emulator.poll() is not None:
                    reason = log.read_text(errors="replace").strip()
                    raise Failure(f"qemu-system-x86_64 did not start: {reason}")
                time.sleep(0.05)
        except BaseException:
            emulator.kill()
            emulator.wait()
            raise

    def make_disks(self, image: Image) -> None:
        """Fresh ones: the root disk is a layer over the image, the others are sparse."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        for name, size in (("spare.img", SPARE_DISK), ("swap.img", SWAP_DISK)):
            with (self.directory / name).open("wb") as disk_file:
                disk_file.truncate(size)
        layer = self.directory / "root.qcow2"
        backing = ("-F", "raw", "-b", image.file("root.img"))
        commands: tuple[list[str | Path], ...] = (
            ["qemu-img", "create", "-q", "-f", "qcow2", *backing, layer],
            ["mkfs.ext4", "-q", "-F", "-L", "spare", self.directory / "spare.img"],
            ["mkswap", "-q", "-L", "swap", self.directory / "swap.img"],
        )
        for command in commands:
            made = quietly(command)
            if made.returncode:
                raise Failure(f"{command[0]}: {made.stderr.strip()}")

    def speaks(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.pid():
            if self.console.stat().st_size:
                return True
            time.sleep(0.2)
        return False

    def wait_ready(self, accelerator: str) -> None:
        """Until ssh answers and systemd has nothing left to start; says meanwhile how far it is."""
        began = time.monotonic()
        limit = BOOT_TIMEOUT[accelerator]
        say(f"booting {self.name} ({KIND[accelerator]})")
        progress = Progress(began)
        while not self.ssh_listens(patience=5 + (time.monotonic() - began) / 20):
            if not self.pid():
                raise Failure(f"the machine ended while booting; console: {self.console}")
            if time.monotonic() - began > limit:
                raise Failure(f"not reachable after {limit} s; console: {self.console}")
            progress.show(self.last_line())
            time.sleep(0.5)
        self.connection().open()
        progress.show("systemd: waiting for the last unit", always=True)
        waiting = self.run(["systemctl", "is-system-running", "--wait"], stdout=subprocess.PIPE)
        state = waiting.stdout.decode().strip()
        # A machine that is forgotten ends by itself.
        self.run(["systemd-run", "--quiet", f"--on-active={LIFETIME}", "systemctl", "poweroff"])
        self.save(ready="yes")
        say(f"ready after {time.monotonic() - began:.0f} s")
        if state != "running":
            say(f"systemd says {state}: scripts/vm exec systemctl --failed")

    def last_line(self) -> str:
        lines = self.console.read_bytes()[-4000:].decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else "firmware"

    def ssh_listens(self, patience: float) -> bool:
        """True once sshd itself has spoken: the emulator accepts connections long before."""
        address = ("127.0.0.1", int(self.state["port"]))
        try:
            with socket.create_connection(address, timeout=patience) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    # -- stop

    def stop(self, *, now: bool = False) -> bool:
        """Ends the machine; true if there was one."""
        pid = self.pid()
        if pid and not now:
            with contextlib.suppress(Failure, subprocess.TimeoutExpired):
                self.connection().power_off()
            if not self.gone(pid, STOP_TIMEOUT):
                say(f"still running after {STOP_TIMEOUT} s: ending it")
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            if not pid or self.gone(pid, 0):
                break
            # Opened before the process is verified, the descriptor cannot come to mean another one.
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                try:
                    if self.pid() == pid:
                        signal.pidfd_send_signal(descriptor, signal_number)
                finally:
                    os.close(descriptor)
            self.gone(pid, 10)
        if self.state:
            self.connection().close()
            self.save(ready="")
        for name in ("pid", "root.qcow2", "spare.img", "swap.img"):
            (self.directory / name).unlink(missing_ok=True)
        return bool(pid)

    def gone(self, pid: int, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.pid() == pid:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)
        return True


class Progress:
    """The console's last line: every ten seconds, or in place on a terminal."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.next = 0.0
        self.terminal = sys.stderr.isatty()

    def show(self, text: str, *, always: bool = False) -> None:
        now = time.monotonic()
        if now < self.next and not always:
            return
        self.next = now + (0.5 if self.terminal else 10)
        line = f"vm: {now - self.began:4.0f} s  {text[:100]}"
        if self.terminal:
            line = f"\r\033[K{line}"
        end = "" if self.terminal and not always else "\n"
        print(line, end=end, file=sys.stderr, flush=True)


def disk(serial: str, path: Path, form: str) -> list[str]:
    """Unsafe caching: what a power cut would lose is thrown away anyway."""
    return [
        "-drive", f"if=none,id={serial},file={path},format={form},cache=unsafe,discard=unmap",
        "-device", f"virtio-blk-pci,drive={serial},serial={serial}",
    ]  # fmt: skip


def kvm_offered() -> bool:
    """A device node alone proves nothing: nested, it may open and yet run no kernel."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return bool({"vmx", "svm"} & set(flags)) and os.access("/dev/kvm", os.R_OK | os.W_OK)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
