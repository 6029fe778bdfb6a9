"""/dev/kvm asked: does it open, for us, which API, what it offers, is a machine made.

This runs in a child (`minirun.virt.child`), and tells what it learned step by step.
"""

from __future__ import annotations

import errno
import os
import struct

from minirun.kernel import kvm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from minirun.virt.child import Tell

_EXTENSIONS = 256
# The leaves of KVM_GET_SUPPORTED_CPUID that say something about virtualization.
_LEAVES = (0x1, 0x7, 0x40000000, 0x40000001, 0x80000001, 0x8000000A, 0x8000001F)


def look(tell: Tell) -> None:
    """Ask everything that needs no guest to run."""
    try:
        fd = kvm.open_device()
    except OSError as error:
        tell({"open": _name(error)})
        return
    try:
        tell({"open": "ok"})
        tell({"api": kvm.api_version(fd)})
        tell({"extensions": _extensions(fd)})
        tell({"supported": _or_error(lambda: _supported(fd))})
        tell({"msrs": _or_error(lambda: {hex(n): hex(v) for n, v in kvm.feature_msrs(fd).items()})})
        _create(fd, tell)
    finally:
        os.close(fd)


def _create(fd: int, tell: Tell) -> None:
    try:
        vm = kvm.create_vm(fd)
    except OSError as error:
        tell({"vm": _name(error)})
        return
    tell({"vm": "ok"})
    try:
        os.close(kvm.create_vcpu(vm))
        tell({"vcpu": "ok"})
    except OSError as error:
        tell({"vcpu": _name(error)})
    finally:
        os.close(vm)


def _extensions(fd: int) -> dict[str, int]:
    """What CHECK_EXTENSION says of every number that it knows, 0 left out."""
    found = {}
    for number in range(_EXTENSIONS):
        try:
            answer = kvm.check_extension(fd, number)
        except OSError:
            answer = 0  # an extension that the kernel refuses to speak of is not offered
        if answer:
            found[str(number)] = answer
    return found


def _supported(fd: int) -> dict[str, list[int]]:
    entries = kvm.supported_cpuid(fd)
    found = {}
    for at in range(0, len(entries), 40):
        leaf, subleaf, _flags, *registers = struct.unpack_from("=7I", entries, at)
        if leaf in _LEAVES:
            found[f"{leaf:x}.{subleaf:x}"] = registers
    return found


def _or_error(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except OSError as error:
        return _name(error)


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "EIO")
