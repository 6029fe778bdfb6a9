"""Every flag of runc's is there, of the same kind: by a list of 1.5's, and by the one installed."""

from __future__ import annotations

import re
import subprocess

import pytest

from minirun.grammar import FLAG, Option
from minirun.options import GLOBALS, VERBS

_LAUNCH = "bundle= b= console-socket= pidfd-socket= pid-file= no-pivot no-new-keyring preserve-fds="
_IMAGES = """image-path= work-path= tcp-established ext-unix-sk shell-job lazy-pages file-locks
    manage-cgroups-mode= empty-ns= auto-dedup"""

# runc 1.5; a name with "=" takes a value.
RUNC = {
    "": "debug log= log-format= root= systemd-cgroup rootless= help h version v",
    "create": _LAUNCH,
    "run": f"{_LAUNCH} detach d keep no-subreaper",
    "exec": """console-socket= pidfd-socket= cwd= env= e= tty t user= u= additional-gids= g=
        process= p= detach d pid-file= process-label= apparmor= no-new-privs cap= c=
        preserve-fds= cgroup= ignore-paused no-subreaper""",
    "start": "",
    "state": "",
    "kill": "all a",
    "delete": "force f",
    "list": "format= f= quiet q",
    "ps": "format= f=",
    "pause": "",
    "resume": "",
    "events": "interval= stats",
    "features": "",
    "spec": "bundle= b= rootless",
    "update": """resources= r= blkio-weight= cpu-period= cpu-quota= cpu-burst= cpu-share=
        cpu-rt-period= cpu-rt-runtime= cpu-idle= cpuset-cpus= cpuset-mems= kernel-memory=
        kernel-memory-tcp= memory= memory-reservation= memory-swap= pids-limit= l3-cache-schema=
        mem-bw-schema=""",
    "checkpoint": f"""{_IMAGES} parent-path= leave-running tcp-skip-in-flight link-remap status-fd=
        page-server= pre-dump""",
    "restore": f"""{_IMAGES} bundle= b= detach d console-socket= pid-file= no-subreaper no-pivot
        lsm-profile= lsm-mount-context=""",
}
# What is ours beyond runc's, apart from the options of --rootfs.
MORE = {
    "": {"criu=", "cgroup-manager="},
    "create": {"config=", "f="},
    "run": {"config=", "f=", "explain"},
    "kill": {"regex", "r"},
    "delete": {"regex", "r"},
    "restore": {"pidfd-socket="},
}
# What earlier versions had, and what nobody passes.
GONE = {"help", "h", "criu"}


def spelt(option: Option) -> set[str]:
    return {name + ("" if option.kind == FLAG else "=") for name in option.names}


def options(verb: str) -> set[str]:
    table = GLOBALS if verb == "" else VERBS[verb].options
    return {name for option in table if not option.needs_rootfs for name in spelt(option)}


def test_the_verbs_are_runcs() -> None:
    assert set(VERBS) == set(RUNC) - {""}


@pytest.mark.parametrize("verb", RUNC)
def test_the_flags_are_runcs(verb: str) -> None:
    assert options(verb) == set(RUNC[verb].split()) | MORE.get(verb, set())


@pytest.mark.requires("runc")
@pytest.mark.parametrize("verb", RUNC)
def test_the_flags_of_the_runc_that_is_here(verb: str) -> None:
    words = ["runc", verb, "--help"] if verb else ["runc", "--help"]
    text = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    found = set()
    for line in text.partition("OPTIONS:")[2].splitlines():
        for dashes, name, value in re.findall(r"(?:^\s+|, )(--?)([a-z0-9-]+)( value)?", line):
            if name not in GONE and dashes:
                found.add(name + ("=" if value else ""))
    assert found <= options(verb) | {"help", "version"}
