"""Labels of Linux security modules, written through the private /proc (CVE-2019-16884)."""

from __future__ import annotations

import os

from minirun import procfs
from minirun.errors import ConfigError
from minirun.kernel.statfs import SELINUX_MAGIC, fstatfs_type
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup

_EXEC = "thread-self/attr/exec"


def apparmor_enabled() -> bool:
    """Whether the kernel enforces AppArmor."""
    try:
        with open("/sys/module/apparmor/parameters/enabled", "rb") as file:
            return file.read(1) == b"Y"
    except FileNotFoundError:
        return False


def selinux_enabled() -> bool:
    """Whether the kernel has SELinux: its file system is mounted where libselinux looks."""
    try:
        fd = os.open("/sys/fs/selinux", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        return fstatfs_type(fd) == SELINUX_MAGIC
    finally:
        os.close(fd)


def _of_process(setup: Setup) -> list[str]:
    process = setup.process
    return [label for label in (process.apparmor_profile, process.selinux_label) if label]


def _asked(setup: Setup) -> list[str]:
    mounts = setup.spec.linux.mount_label
    return [*_of_process(setup), *([mounts] if mounts else [])]


@step(_asked, details=_asked)
def check(setup: Setup) -> None:
    """Check that the kernel can enforce the security labels"""
    profile, label = setup.process.apparmor_profile, setup.process.selinux_label
    if profile and not apparmor_enabled():
        raise ConfigError("process.apparmorProfile", "apparmor is not enabled on this host")
    for name, value in (("apparmorProfile", profile), ("selinuxLabel", label)):
        if "\n" in (value or ""):
            raise ConfigError(f"process.{name}", "must not hold a newline")
    setup.selinux = selinux_enabled()
    if setup.selinux:
        return
    if label:
        raise ConfigError(
            "process.selinuxLabel",
            "selinux label is specified in config, but selinux is disabled or not supported",
        )
    if setup.spec.linux.mount_label:
        # As in runc: it tells of mounts only, and where nobody enforces labels they say nothing.
        setup.notes.append("linux.mountLabel is ignored: this kernel has no SELinux enabled")


@step(_of_process)
def open_procfs(setup: Setup) -> None:
    """Open a private /proc through which the process is labelled"""
    setup.labelfd = procfs.private_mount()


def writes(setup: Setup) -> list[tuple[str, str]]:
    """List the files of /proc, and what is to be written to each, so that execve(2) labels."""
    found = []
    if setup.process.apparmor_profile:
        found.append((_apparmor_file(setup.labelfd), f"exec {setup.process.apparmor_profile}"))
    if setup.process.selinux_label:
        found.append((_EXEC, setup.process.selinux_label))
    return found


def _apparmor_file(labelfd: int) -> str:
    """The file that takes a profile; since Linux 5.8 AppArmor has its own directory."""
    path = "thread-self/attr/apparmor/exec"
    try:
        os.close(procfs.open_file(labelfd, path, os.O_WRONLY))
    except FileNotFoundError:
        return _EXEC
    return path
