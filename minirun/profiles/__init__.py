"""The profiles that the human face gives a container which is not asked otherwise.

`seccomp.json` is a linux.seccomp object (config-linux.md, "Seccomp"), valid for every OCI runtime;
its `comment` members are unknown to the specification and so ignored.
"""

from __future__ import annotations

import os

from minirun import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Whose system calls a kernel also takes: include/uapi/linux/audit.h, and libseccomp for x32.
_FAMILIES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}


def seccomp(machine: str | None = None) -> dict[str, Any]:
    """Return the default linux.seccomp object for a machine (as `uname -m` has it; None: this one).

    Other machines' architectures are left out: their part of the filter would never be reached.
    """
    path = os.path.join(os.path.dirname(__file__), "seccomp.json")
    profile: dict[str, Any] = jsontext.read(path, "the default seccomp profile")
    profile["architectures"] = list(_FAMILIES.get(machine or os.uname().machine, ()))
    return profile
