"""Kernel parameters of the container's namespaces, written through the private /proc."""

from __future__ import annotations

from minirun import procfs
from minirun.step import quoted, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.setup import Setup


def file_of(key: str) -> str:
    """Turn a key into its path below /proc: dots separate unless a slash comes first: sysctl(8)."""
    dot, slash = key.find("."), key.find("/")
    if slash >= 0 and (dot < 0 or slash < dot):
        return f"sys/{key}"
    return "sys/" + key.translate({ord("."): "/", ord("/"): "."})


@step(
    lambda setup: bool(setup.spec.linux.sysctl),
    details=lambda setup: [f"{key}={value}" for key, value in setup.spec.linux.sysctl.items()],
    shell=lambda setup: [
        f"echo {quoted(value)} > {quoted(f'/proc/{file_of(key)}')}"
        for key, value in setup.spec.linux.sysctl.items()
    ],
)
def write_all(setup: Setup) -> None:
    """Set the kernel parameters"""
    for key, value in setup.spec.linux.sysctl.items():
        procfs.write(setup.procfd, file_of(key), value)
