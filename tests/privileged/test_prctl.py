"""What the steps leave of a process, as another library sees it: python-prctl asks the kernel.

The steps are minirun's own calls; here none of them is asked.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import prctl
import pytest

from minirun import capabilities, profiles, seccomp
from minirun.setup import Launch, Setup
from minirun.spec import Process, Seccomp, Spec
from minirun.step import wanted

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.requires("root", "seccomp")


def states() -> dict[str, Any]:
    """What python-prctl tells of the process that asks."""
    names = [name for name in dir(prctl.capbset) if not name.startswith("_")]

    def held(of: Any) -> list[str]:
        return sorted(name for name in names if getattr(of, name, False) is True)

    return {
        "bounding": held(prctl.capbset),
        "effective": held(prctl.cap_effective),
        "permitted": held(prctl.cap_permitted),
        "inheritable": held(prctl.cap_inheritable),
        "no_new_privs": prctl.get_no_new_privs(),
        "dumpable": prctl.get_dumpable(),
        "keepcaps": prctl.get_keepcaps(),
        "securebits": prctl.get_securebits(),
        "seccomp": prctl.get_seccomp(),
        "ids": [os.getresuid(), os.getresgid()],
    }


def after(act: Callable[[], object]) -> dict[str, Any]:
    """Do something in a process of its own; return its states then."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os.write(writable, json.dumps(states()).encode())
        finally:
            os._exit(0)
    os.close(writable)
    with open(readable, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    found: dict[str, Any] = json.loads(said)
    return found


def process(**fields: Any) -> Process:
    return Process.decode({"cwd": "/", "args": ["true"], **fields}, "process")


def setup_of(asked: Process) -> Setup:
    setup = Setup("box", Spec(), asked, "/", Launch())
    capabilities.look(setup)
    return setup


def test_a_user_keeps_the_capabilities_that_were_asked_for() -> None:
    kept = ["CAP_KILL", "CAP_NET_BIND_SERVICE"]
    sets = ("bounding", "effective", "permitted", "inheritable", "ambient")
    asked = process(
        user={"uid": 1000, "gid": 1001}, capabilities={name: list(kept) for name in sets}
    )
    found = after(lambda: capabilities.drop(setup_of(asked)))
    names = ["kill", "net_bind_service"]
    assert {name: found[name] for name in sets[:-1]} == dict.fromkeys(sets[:-1], names)
    assert found["ids"] == [[1000] * 3, [1001] * 3]
    assert (found["dumpable"], found["keepcaps"], found["securebits"]) == (0, 0, 0)


def test_nothing_is_kept_where_nothing_was_asked_for() -> None:
    found = after(lambda: capabilities.drop(setup_of(process())))
    sets = ("bounding", "effective", "permitted", "inheritable")
    assert {name: found[name] for name in sets} == {name: [] for name in sets}


@pytest.mark.parametrize("forbidden", [True, False])
def test_new_privileges(forbidden: bool) -> None:
    setup = setup_of(process(noNewPrivileges=forbidden))
    step = capabilities.set_no_new_privs
    found = after(lambda: wanted(step, setup) and step(setup))
    assert found["no_new_privs"] == forbidden


def test_the_filter_is_in_place() -> None:
    install = seccomp.prepare(seccomp.compile(Seccomp.decode(profiles.seccomp(), "linux.seccomp")))
    assert after(lambda: None)["seccomp"] is False
    assert after(install)["seccomp"] is True
