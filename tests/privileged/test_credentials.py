"""Who the payload is: capabilities, user, groups, no_new_privs, umask, limits. T-ID1 to T-ID10."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
from runtime import Report, capabilities, command, good, read, report_of

if TYPE_CHECKING:
    from pathlib import Path

    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs")

LAST_CAP = int(read("/proc/sys/kernel/cap_last_cap"))
CHOWN, KILL, SETUID, BIND = 1 << 0, 1 << 5, 1 << 7, 1 << 10
EVERY = (1 << LAST_CAP + 1) - 1


# ---------------------------------------------------------------- capabilities


@pytest.mark.parametrize("nnp", [True, False])
def test_root_has_what_its_bounding_set_allows(box: Box, nnp: bool) -> None:
    box.process["noNewPrivileges"] = nnp
    caps = box.probe().caps
    assert caps == {"Inh": 0, "Prm": KILL | BIND, "Eff": KILL | BIND, "Bnd": KILL | BIND, "Amb": 0}


@pytest.mark.parametrize("given", [None, {}, capabilities()])
def test_no_capabilities_are_none(box: Box, given: dict[str, Any] | None) -> None:
    if given is None:
        del box.process["capabilities"]
    else:
        box.process["capabilities"] = given
    assert set(box.probe().caps.values()) == {0}


def test_another_user_has_the_ambient_ones_only(box: Box) -> None:
    box.process["user"] = {"uid": 1000, "gid": 1000}
    caps = box.probe().caps
    assert caps == {"Inh": 0, "Prm": 0, "Eff": 0, "Bnd": KILL | BIND, "Amb": 0}

    sets = {"inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]}
    box.process["capabilities"] = capabilities("CAP_KILL", "CAP_NET_BIND_SERVICE", **sets)
    caps = box.probe().caps
    assert caps == {"Inh": KILL, "Prm": KILL, "Eff": KILL, "Bnd": KILL | BIND, "Amb": KILL}


def test_ambient_needs_inheritable_and_permitted(box: Box) -> None:
    """Else the kernel refuses it; it must not be had by another way, nor be forgotten loudly."""
    box.process["user"] = {"uid": 1000, "gid": 1000}
    box.process["capabilities"] = capabilities("CAP_KILL", ambient=["CAP_KILL"])
    done = box.run()
    if done.code == 0:
        assert report_of(done.out).caps["Amb"] == 0


def test_the_sets_are_not_mixed(box: Box) -> None:
    box.process["user"] = {"uid": 1000, "gid": 1000}
    box.process["capabilities"] = {
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_KILL", "CAP_SETUID"],
        "ambient": ["CAP_KILL"],
    }
    caps = box.probe().caps  # permitted and effective are the ambient ones: capabilities(7)
    sets = {"Bnd": CHOWN | KILL | SETUID, "Inh": KILL | SETUID, "Amb": KILL}
    assert caps == {**sets, "Prm": KILL, "Eff": KILL}


def test_all_that_the_kernel_has(box: Box) -> None:
    """Every bit up to cap_last_cap can be given, and taken: P-30."""
    from minirun.kernel.capability import NAMES

    ours = Report(status=read("/proc/self/status")).caps["Bnd"]
    box.process["capabilities"] = capabilities(*NAMES)
    assert box.probe().caps["Bnd"] == EVERY & ours
    for number, name in enumerate(NAMES[: LAST_CAP + 1]):
        if name in ("CAP_CHOWN", "CAP_SETPCAP", "CAP_AUDIT_READ", NAMES[-1]):
            box.process["capabilities"] = capabilities(name)
            assert box.probe().caps["Bnd"] == 1 << number & ours


def test_unknown_names_grant_nothing(box: Box) -> None:
    box.process["capabilities"] = capabilities("CAP_KILL", "CAP_FUTURE", "cap_chown", "CHOWN")
    done = box.run()
    if done.code == 0:
        assert report_of(done.out).caps["Bnd"] == KILL


def test_the_callers_ambient_ones_are_not_inherited(box: Box) -> None:
    box.process["user"] = {"uid": 1000, "gid": 1000}
    box.command = ["setpriv", "--inh-caps", "+chown", "--ambient-caps", "+chown", *command()]
    assert box.probe().caps == {"Inh": 0, "Prm": 0, "Eff": 0, "Bnd": KILL | BIND, "Amb": 0}


def test_securebits_are_off(box: Box) -> None:
    box.command = ["setpriv", "--securebits", "+no_setuid_fixup", *command()]
    report = box.probe()
    assert (report["securebits"], report["keepcaps"]) == (0, 0)


def test_no_new_privileges(box: Box) -> None:
    assert box.probe().status("NoNewPrivs") == "1"
    box.process["noNewPrivileges"] = False
    assert box.probe().status("NoNewPrivs") == "0"


@pytest.mark.parametrize("nnp", [True, False])
def test_a_set_user_id_program(box: Box, nnp: bool) -> None:
    (box.rootfs / "probe").chmod(0o4755)
    box.process.update(noNewPrivileges=nnp, user={"uid": 1000, "gid": 1000})
    report = box.probe()
    assert report.ids[0] == ("1000 1000 1000 1000" if nnp else "1000 0 0 0")
    assert report.caps["Eff"] == (0 if nnp else KILL | BIND)


# ---------------------------------------------------------------- users and groups


@pytest.mark.parametrize("number", [0, 1, 1000, 65535, 2**31 - 1, 2**31, 2**32 - 2])
def test_every_id_is_what_it_says(box: Box, number: int) -> None:
    box.process["user"] = {"uid": number, "gid": number, "additionalGids": [number]}
    ids = f"{number} {number} {number} {number}"
    assert box.probe().ids == (ids, ids, str(number))


@pytest.mark.parametrize("field", ["uid", "gid", "additionalGids"])
@pytest.mark.parametrize(
    "number", [-1, 2**32 - 1, 2**32, 2**63, 2**64, 10**400, True, "0", 1.5, float("nan")]
)
def test_what_is_no_id(box: Box, field: str, number: Any) -> None:
    """2**32 - 1 means "leave as it is" to setresuid(2): root would stay root. T-ID2, P-23."""
    box.process["user"][field] = [number] if field == "additionalGids" else number
    box.refused()


@pytest.mark.parametrize("groups", [None, [], [7], [7, 8, 7]])
@pytest.mark.parametrize("uid", [0, 1000])
def test_groups_are_those_given(box: Box, uid: int, groups: list[int] | None) -> None:
    """None of the caller's. T-ID6, CVE-2022-2989."""
    user = {"uid": uid, "gid": uid}
    box.process["user"] = user if groups is None else {**user, "additionalGids": groups}
    box.command = ["setpriv", "--groups", "4,6,44", *command()]
    assert set(box.probe().ids[2].split()) == {str(group) for group in groups or []}


def test_ambient_ones_that_cannot_be_are_told_of(box: Box, tmp_path: Path) -> None:
    """As runc does: on stderr, but no second object in a log of JSON that an engine reads."""
    box.process["capabilities"].update(inheritable=["CAP_KILL"], ambient=["CAP_KILL", "CAP_CHOWN"])
    box.process["args"] = ["/bin/true"]
    warning = "can't raise ambient capability CAP_CHOWN: operation not permitted"
    assert good(box.run()).err == f"minirun: warning: {warning}\n"
    log = tmp_path / "log"
    box.command = [*command(), "--log", str(log), "--log-format", "json"]
    assert good(box.run()).err == ""
    assert not log.exists() or read(log) == ""


def test_the_callers_groups_are_kept_where_asked(box: Box) -> None:
    """By podman's `keep-groups`, for exec too."""
    box.config["annotations"] = {"run.oci.keep_original_groups": "1"}
    box.process["user"] = {"uid": 7, "gid": 7}
    box.command = ["setpriv", "--groups", "4,6,44", *command()]
    assert set(box.probe().ids[2].split()) == {"4", "6", "44"}
    box.up()
    assert set(box.exec_probe().ids[2].split()) == {"4", "6", "44"}


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("1", (1, 0)), ("1:2", (1, 2)), ("0", (0, 0)), ("1000:1000", (1000, 1000)),
        ("4294967294", (4294967294, 0)),
    ],
)  # fmt: skip
def test_exec_as_a_user(box: Box, text: str, ids: tuple[int, int]) -> None:
    box.up()
    report = box.exec_probe(flags=["--user", text])
    assert tuple(int(one.split()[0]) for one in report.ids[:2]) == ids


@pytest.mark.parametrize(
    "text",
    [
        "01", "+1", " 1", "1 ", "1:", ":1", "0x1", "1e3", "\u0661", "1_000", "-1", "4294967295",
        "4294967296", "1:2:3", "", "root", "sam", "1\n",
    ],
)  # fmt: skip
def test_exec_as_nobody_knows_whom(box: Box, text: str) -> None:
    """T-ID1; CVE-2026-30892 in crun."""
    box.up()
    done = box.exec("/probe", flags=[f"--user={text}"])
    assert done.code == 255
    assert done.out == ""


def test_numbers_are_no_names(box: Box) -> None:
    """A user whose name is a number must not be found by it: CVE-2016-3697."""
    (box.rootfs / "etc/passwd").write_text("1000:x:0:0::/evil:/bin/sh\n-1:x:0:0::/:/bin/sh\n")
    box.process["user"] = {"uid": 1000, "gid": 1000}
    report = box.probe()
    assert report.ids[0] == "1000 1000 1000 1000"
    assert "HOME=/" in report["env"]


def test_a_working_directory_that_is_closed_to_the_user(box: Box) -> None:
    """As in an image whose WORKDIR is root's, mode 0700: runc enters it before it drops rights."""
    box.process.update(user={"uid": 42, "gid": 42}, cwd="/closed")
    (box.rootfs / "closed").mkdir(mode=0o700)
    assert box.probe()["cwd"] == "/closed"
    os.chown(box.rootfs / "closed", 42, 42)
    box.up()
    assert box.exec_probe(flags=["--user", "0", "--cwd", "/closed"])["cwd"] == "/closed"


# ---------------------------------------------------------------- the home directory, T-ID8


def hostile_passwd(box: Box, kind: str) -> None:
    path = box.rootfs / "etc/passwd"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "self":
        path.symlink_to("/proc/self/mem")
    elif kind == "host":
        path.symlink_to(box.place / "host/passwd")
    elif kind == "directory":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(10 << 30)
    elif kind == "long":
        path.write_bytes(b"x" * (100 << 20))
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe:x:0\0:0::/\xff\0\n\n::::::\nroot:x:zero:0::/evil:\n")


@pytest.mark.parametrize(
    "kind", ["fifo", "zero", "self", "host", "directory", "sparse", "long", "binary", "absent"]
)
def test_a_hostile_passwd(box: Box, canary: Any, kind: str) -> None:
    """runc 1.1.5 waits for ever at a FIFO."""
    (canary / "passwd").write_text("root:x:0:0::/secret:/bin/sh\n")
    hostile_passwd(box, kind)
    report = box.probe()
    assert "HOME=/" in report["env"]


@pytest.mark.parametrize("home", ["/a\nb", "relative", "/\x1b[2J", ""])
def test_a_hostile_home(box: Box, home: str) -> None:
    (box.rootfs / "etc/passwd").write_text(f"root:x:0:0::{home}:/bin/sh\n")
    assert [one for one in box.probe()["env"] if one.startswith("HOME=")] in (
        ["HOME=/"],
        ["HOME=/a"],
    )


def test_home_is_the_users(box: Box) -> None:
    assert "HOME=/root" in box.probe()["env"]
    box.process["env"] = [*box.process["env"], "HOME=/given"]
    assert [one for one in box.probe()["env"] if one.startswith("HOME=")] == ["HOME=/given"]


# ---------------------------------------------------------------- the rest of a process


@pytest.mark.parametrize(("mask", "found"), [(None, "0022"), (0, "0000"), (0o77, "0077")])
def test_umask(box: Box, mask: int | None, found: str) -> None:
    if mask is not None:
        box.process["user"]["umask"] = mask
    box.command = ["sh", "-c", 'umask 013; exec "$0" "$@"', *command()]
    assert box.probe().status("Umask") == found


def test_resource_limits(box: Box) -> None:
    box.process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
    report = box.probe()
    assert report.limit("Max open files") == ["100", "200"]
    assert report.limit("Max core file size") == ["0", "0"]


def test_the_core_limit_of_the_caller_comes_back(box: Box) -> None:
    """minirun's own processes have none, so that nothing of the host is dumped: T-FD5."""
    box.command = ["sh", "-c", 'ulimit -Hc 8; ulimit -Sc 4; exec "$0" "$@"', *command()]
    assert box.probe().limit("Max core file size")[1] == "4096"


def test_oom_score(box: Box) -> None:
    box.process["oomScoreAdj"] = 321
    assert box.probe()["oom_score_adj"] == "321\n"


def test_what_root_writes_is_kept_by_nobody(box: Box) -> None:
    """The payload's file has its owner, its mode has its umask."""
    box.process["user"] = {"uid": 1000, "gid": 1001}
    box.sh("echo x > /tmp/made; mkdir /tmp/dir")
    made = (box.rootfs / "tmp/made").stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (1000, 1001, 0o644)
    assert (box.rootfs / "tmp/dir").stat().st_mode & 0o777 == 0o755


def test_exec_adds_capabilities_but_not_inheritable_ones(box: Box) -> None:
    """CVE-2022-29162, CVE-2025-27612. T-ID3."""
    box.up()
    caps = box.exec_probe(flags=["--cap", "CAP_CHOWN"]).caps
    assert caps["Inh"] == caps["Amb"] == 0
    assert caps["Bnd"] == caps["Prm"] == caps["Eff"] == CHOWN | KILL | BIND
    assert box.exec_probe().caps["Bnd"] == KILL | BIND
    good(box.delete("--force"))
