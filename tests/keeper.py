"""Ends what a run of the tests leaves that is itself killed: containers, frozen ones too.

    keeper.py DIRECTORY PREFIX < PIPE

Waits for the end of the pipe, whose other end the run holds. One byte before it says that the run
has ended in order, and there is nothing to do. Else the processes of all cgroups are killed whose
names begin with PREFIX, the groups removed, then the processes that a state.json below DIRECTORY
tells of, then DIRECTORY.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CGROUPS = "/sys/fs/cgroup"
PATIENCE = 20.0  # seconds for what was killed to be gone


def main() -> None:
    """Wait, then clean up."""
    directory, prefix = sys.argv[1:]
    if os.read(0, 1):
        return
    sweep(prefix)
    for state in Path(directory).glob("*/state/*/state.json"):
        end(state)
    subprocess.run(["rm", "-rf", "--one-file-system", directory], check=False)


def sweep(prefix: str) -> None:
    """Kill and remove the cgroups whose names begin with `prefix`, and those below them."""
    for top, _names, _files in list(os.walk(CGROUPS)):
        if os.path.basename(top).startswith(prefix):
            put(f"{top}/cgroup.kill", "1")
            put(f"{top}/cgroup.freeze", "0")
            deadline = time.monotonic() + PATIENCE
            for group, _names, _files in list(os.walk(top, topdown=False)):
                while not removed(group) and time.monotonic() < deadline:
                    time.sleep(0.02)


def put(path: str, value: str) -> None:
    """Write to a file of cgroupfs that may be gone."""
    try:
        with open(path, "w") as file:
            file.write(value)
    except OSError:
        pass


def removed(group: str) -> bool:
    """Remove a cgroup; False while a process is in it."""
    try:
        os.rmdir(group)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def end(state: Path) -> None:
    """Kill the process of a container that has no cgroup, if its number is not another's now."""
    try:
        found = json.loads(state.read_text())
        fd = os.pidfd_open(found["pid"])
    except (OSError, ValueError, KeyError):
        return
    try:
        stat = Path(f"/proc/{found['pid']}/stat").read_text(errors="replace")
        if int(stat.rpartition(")")[2].split()[19]) == found["start_time"]:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    except (OSError, KeyError):
        pass
    finally:
        os.close(fd)


if __name__ == "__main__":
    main()
