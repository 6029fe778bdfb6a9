"""Labels of Linux security modules, written through the private /proc (CVE-2019-16884)."""

from __future__ import annotations

import os

from minirun import procfs
from minirun.errors import ConfigError
from minirun.step import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup


def apparmor_enabled() -> bool:
    """Whether the kernel enforces AppArmor."""
    try:
        with open("/sys/module/apparmor/parameters/enabled", "rb") as file:
            return file.read(1) == b"Y"
    except FileNotFoundError:
        return False


@step(
    lambda setup: setup.process.apparmor_profile,
    details=lambda s: [str(s.process.apparmor_profile)],
)
def check(setup: Setup) -> None:
    """Check that the kernel can enforce the AppArmor profile"""
    if not apparmor_enabled():
        raise ConfigError("process.apparmorProfile", "apparmor is not enabled on this host")
    if "\n" in (setup.process.apparmor_profile or ""):
        raise ConfigError("process.apparmorProfile", "must not hold a newline")


@step(lambda setup: setup.process.apparmor_profile)
def open_procfs(setup: Setup) -> None:
    """Open a private /proc through which the AppArmor profile is set"""
    setup.labelfd = procfs.private_mount()


def attribute(setup: Setup) -> str:
    """The file of /proc that takes the profile; since Linux 5.8 AppArmor has its own directory."""
    path = "thread-self/attr/apparmor/exec"
    try:
        os.close(procfs.open_file(setup.labelfd, path, os.O_WRONLY))
    except FileNotFoundError:
        return "thread-self/attr/exec"
    return path
