"""What a payload gets of its caller: nothing. T-EN1, T-SG1, T-KR1."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from runtime import PATH, Report, call, good, read, report_of, until

if TYPE_CHECKING:
    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs")

# A caller that has changed everything that a process inherits.
ODD_CALLER = """
import ctypes, os, signal, sys
for name in ("SIGPIPE", "SIGHUP", "SIGINT", "SIGCHLD", "SIGXFSZ", "SIGRTMIN"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1, 40})
signal.setitimer(signal.ITIMER_REAL, 50)
os.umask(0)
libc = ctypes.CDLL(None)
libc.personality(0x0040000)  # ADDR_NO_RANDOMIZE
libc.prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
os.execv(sys.argv[1], sys.argv[1:])
"""


def odd(box: Box) -> None:
    words = box.command if os.path.isabs(box.command[0]) else ["/usr/bin/env", *box.command]
    box.command = [sys.executable, "-ISc", ODD_CALLER, *words]


def check_signals(report: Report) -> None:
    for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"):
        assert report.bits(name) == 0, name
    assert (report["timer"], report["timers"]) in ((0, ""), (0, None))
    assert report["pdeathsig"] == 0


def test_signals_are_as_new(box: Box) -> None:
    odd(box)
    check_signals(box.probe())


def test_signals_are_as_new_in_exec(box: Box) -> None:
    box.up()
    odd(box)
    check_signals(box.exec_probe())


def test_signals_are_as_new_after_start(box: Box) -> None:
    """The process was made by create; who calls start has no part in it."""
    box.process["args"] = ["/bin/cat", "/proc/self/status"]
    odd(box)
    with open(box.place / "out", "w") as out:
        box.create(stdout=out)
        box.start()
        call(box.words("state", box.id))
        text = until(lambda: "SigCgt" in (found := read(box.place / "out")) and found)
    report = Report(status=text)
    assert [report.bits(name) for name in ("SigBlk", "SigIgn", "SigCgt")] == [0, 0, 0]


@pytest.mark.parametrize("value", [0, 5])
def test_niceness_is_the_callers(box: Box, value: int) -> None:
    """As with every other program that one starts, unless config.json has a scheduler."""
    box.command = ["nice", "-n", str(value), *box.command]
    assert box.probe()["nice"] == min(os.getpriority(os.PRIO_PROCESS, 0) + value, 19)


def test_the_process_is_of_a_session_of_its_own(box: Box) -> None:
    report = box.probe()
    assert report["sid"] == report["pid"] == 1


# ---------------------------------------------------------------- environment


def environment(box: Box, *entries: str) -> list[str]:
    box.process["env"] = list(entries)
    found: list[str] = box.probe()["env"]
    return found


def test_the_environment_is_that_of_the_configuration(box: Box) -> None:
    given = [
        PATH,
        "B=2",
        "A=1",
        "EMPTY=",
        "SPACE=a b\tc",
        "LINE=a\nb",
        "EQUAL==x=",
        "Ü=ü",
        "HOME=/h",
    ]
    assert environment(box, *given) == given


def test_nothing_of_the_caller_is_in_it(box: Box) -> None:
    marks = {"SECRET": "x", "_MINIRUN_SEALED": "1", "LD_DEBUG": "", "PYTHONPATH": "/x", "LANG": "C"}
    report = box.probe(env={**os.environ, **marks})
    assert report["env"] == [PATH, "HOME=/root"]
    assert report["environ"] == f"{PATH}\0HOME=/root\0"
    box.up()
    assert box.exec_probe(env={**os.environ, **marks})["env"] == [PATH, "HOME=/root"]


def test_the_last_one_counts(box: Box) -> None:
    found = environment(box, PATH, "A=1", "B=1", "A=2", "HOME=/h")
    assert found.count("A=2") == 1
    assert "A=1" not in found


@pytest.mark.parametrize("entry", ["A\0B=1", "=x", ""])
def test_entries_that_are_none(box: Box, entry: str) -> None:
    box.process["env"] = [PATH, entry]
    done = box.confined()
    if done.code == 0:
        assert [one for one in report_of(done.out)["env"] if one.startswith("=")] == []


def test_more_than_the_kernel_takes(box: Box) -> None:
    """MAX_ARG_STRLEN is 128 KiB: execve(2). Told, and nothing is left."""
    box.process["env"] = [PATH, "A=" + "x" * (1 << 18)]
    assert "argument list too long" in box.refused()


def test_path_finds_the_program(box: Box) -> None:
    (box.rootfs / "opt").mkdir()
    (box.rootfs / "opt/echo").symlink_to("/bin/busybox")
    box.process.update(env=["PATH=/nowhere:/opt"], args=["echo", "found"])
    assert good(box.run()).out == "found\n"


def test_arguments_are_as_given(box: Box) -> None:
    words = ["", "a b", "ä", "-x", "*", "$HOME", "a\nb"]
    box.process["args"] = ["/probe", "report", *words]
    assert report_of(good(box.run()).out)["argv"] == ["/probe", "report", *words]


# ---------------------------------------------------------------- keys


def session_keyring(box: Box, **options: Any) -> int:
    """The caller's own keyring, as a program that it starts sees it."""
    found: int = report_of(good(call([str(box.base / "probe")], **options)).out)["keyring"]
    return found


def test_the_session_keyring_is_new(box: Box) -> None:
    """T-KR1."""
    own = session_keyring(box)
    box.up()
    first, second = (box.exec_probe()["keyring"] for _ in range(2))
    assert own not in (first, second)
    assert first > 0


def test_two_containers_share_no_keyring(box: Box) -> None:
    found = [one.probe()["keyring"] for one in (box, box.another())]
    assert found[0] != found[1]


def test_the_callers_keyring_where_it_is_asked_for(box: Box) -> None:
    assert box.probe(flags=["--no-new-keyring"])["keyring"] == session_keyring(box)


def test_an_empty_home_is_none(box: Box) -> None:
    box.process["env"] = [PATH, "HOME="]
    assert box.probe()["env"] == [PATH, "HOME=/root"]
