"""Containers of an ordinary user. The witness is /proc, cgroupfs and systemctl, seen by root."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import missing
from runtime import (
    CHECKOUT,
    LIMIT,
    Box,
    alive,
    cgroup_of,
    command,
    development,
    good,
    read,
    started,
    until,
)
from test_seccomp_notify import MKDIR, Agent, notify

pytestmark = pytest.mark.requires("root", "userns", "setpriv", "unshare")

UID = 54321  # of nobody: no passwd entry is needed for one's own id


class UserBox(Box):
    """A container of user `uid`: what `spec --rootless` writes, called without any privilege."""

    def __init__(self, place: Path, base: Path, uid: int = UID, runtime: str = "") -> None:
        super().__init__(place, base)
        self.uid = uid
        self.runtime = runtime or str(place / "run")
        self.root = Path(self.runtime) / "minirun"
        self.before: list[str] = []  # words before the runtime's
        if not os.environ.get("MINIRUN"):
            shutil.copytree(CHECKOUT / "minirun", place / "code/minirun", dirs_exist_ok=True)
            # As an installation is: what others could write, root does not run.
            subprocess.run(["chmod", "-R", "go-w", str(place / "code")], check=True)
            self.command = development(str(place / "code"))
        for directory in (place, self.bundle, *([] if runtime else [Path(self.runtime)])):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o755)
        for path in (Path(self.runtime), self.bundle, *self.bundle.rglob("*")):
            os.lchown(path, uid, uid)
        good(self.call("spec", "--rootless", "--bundle", str(self.bundle)))
        self.config = json.loads((self.bundle / "config.json").read_text())
        self.process["terminal"] = False
        self.config["root"]["readonly"] = False

    def words(self, *words: str) -> list[str]:
        ids = [f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        env = [
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            f"XDG_RUNTIME_DIR={self.runtime}",
            f"DBUS_SESSION_BUS_ADDRESS=unix:path={self.runtime}/bus",
        ]
        return ["setpriv", *ids, "env", "-i", *env, *self.before, *self.command, *words]


# As minirun(1) has it, but for the path.
PROFILE = """abi <abi/4.0>,
profile minirun {path} flags=(unconfined) {{
  userns,
}}
"""


def parser(option: str) -> None:
    """Have the kernel take the profile of minirun, or forget it."""
    text = PROFILE.format(path=command()[0])
    subprocess.run(["apparmor_parser", option], input=text, text=True, check=True)


@pytest.fixture(scope="module", autouse=True)
def profile() -> Iterator[None]:
    """Where AppArmor restricts user namespaces, minirun has the profile that is recommended."""
    if not missing(("restriction",), None):
        parser("--replace")
        yield
        parser("--remove")
    else:
        yield


@pytest.fixture
def user(place: Path, base: Path) -> Iterator[UserBox]:
    box = UserBox(place, base)
    yield box
    box.before = []
    box.delete("--force")
    assert box.left() == []


def ids(*ranges: tuple[int, int, int]) -> list[dict[str, int]]:
    return [{"containerID": c, "hostID": h, "size": s} for c, h, s in ranges]


def test_root_inside_is_the_user_outside(user: UserBox) -> None:
    pid = user.up()
    assert f"Uid:\t{UID}" in read(f"/proc/{pid}/status")
    assert read(f"/proc/{pid}/uid_map").split() == ["0", str(UID), "1"]
    assert read(f"/proc/{pid}/setgroups").strip() == "deny"
    found = user.exec("/bin/id")
    assert found.out.startswith("uid=0"), found


def test_the_life_of_one(user: UserBox) -> None:
    user.process["args"] = ["/bin/sleep", "600"]
    user.create()
    assert user.state()["status"] == "created"
    mode = user.root.stat()
    assert (mode.st_uid, mode.st_mode & 0o7777) == (UID, 0o1711)
    user.start()
    pid = user.pid
    assert json.loads(good(user.call("list", "--format", "json")).out)[0]["pid"] == pid
    assert json.loads(good(user.call("ps", "--format", "json", user.id)).out) == [pid]
    assert user.exec("/bin/echo", "in").out == "in\n"
    good(user.call("kill", user.id, "KILL"))
    until(lambda: not alive(pid))
    good(user.delete())


def test_devices_and_mounts(user: UserBox) -> None:
    made = user.place / "vol"
    made.mkdir()
    os.chown(made, UID, UID)
    user.mount("/vol", str(made), "rbind", "rw")
    out = user.sh("echo x >/dev/null; head -c1 /dev/zero | wc -c; echo y >/vol/f; ls /dev; id -u")
    assert out.split()[0] == "1"
    assert {"null", "zero", "full", "random", "urandom", "tty", "pts", "shm"} <= set(out.split())
    assert (made / "f").stat().st_uid == UID


def test_masked_and_read_only_paths_hold(user: UserBox) -> None:
    assert user.sh("cat /proc/kcore /proc/keys 2>/dev/null | wc -c") == "0"
    assert user.sh("echo 1 >/proc/sys/kernel/panic || echo refused") == "refused"
    assert user.sh("touch /sys/x 2>/dev/null || echo refused") == "refused"


def test_a_file_of_another_user_stays_closed(user: UserBox) -> None:
    secret = user.place / "secret"
    secret.write_text("of root")
    secret.chmod(0o600)
    user.mount("/vol", str(user.place), "rbind")
    assert user.sh("cat /vol/secret 2>&1; true").endswith("Permission denied")


def test_a_network_namespace_of_its_own(user: UserBox) -> None:
    user.namespace("network")
    devices = user.sh("cat /proc/net/dev").splitlines()[2:]
    assert [line.split(":")[0].strip() for line in devices] == ["lo"]


def test_a_terminal(user: UserBox) -> None:
    from runtime import in_a_terminal, read_until

    user.process["terminal"] = True
    user.process["args"] = ["/bin/sh", "-c", "tty; id -u"]
    user.write()
    with in_a_terminal(user.words("run", "--bundle", str(user.bundle), user.id)) as (master, _run):
        assert b"/dev/" in read_until(master, b"0\r\n")


def test_the_namespaces_of_another_are_joined(user: UserBox) -> None:
    """Its user namespace too, where setgroups(2) is denied."""
    pid = user.up()
    other = UserBox(user.place, user.base)
    for kind in ("uidMappings", "gidMappings"):
        del other.linux[kind]
    del other.config["hostname"]
    for kind, name in {"user": "user", "ipc": "ipc", "uts": "uts", "pid": "pid"}.items():
        other.namespace(kind, f"/proc/{pid}/ns/{name}")
    joined = other.sh("readlink /proc/self/ns/user; readlink /proc/self/ns/uts; id -u").split()
    assert joined == [*(os.readlink(f"/proc/{pid}/ns/{name}") for name in ("user", "uts")), "0"]


@pytest.mark.parametrize("nnp", [False, True])
def test_a_seccomp_agent(user: UserBox, nnp: bool) -> None:
    """Its listener is taken from a process that is else kept from being traced."""
    agent = Agent(user.place / "agent")
    (user.place / "agent").chmod(0o777)
    agent.start()
    try:
        notify(user, user.place, "mkdir", "mkdirat", nnp=nnp)
        user.process["args"] = ["/bin/sh", "-c", "mkdir /tmp/a; ls /tmp"]
        done = user.run()
        assert "No medium found" in done.err
        assert {number for _, number in agent.asked} <= MKDIR
        assert [message["descriptors"] for message in agent.messages] == [1]
    finally:
        agent.end()
    shutil.rmtree(user.root / ".seccomp")  # the compiled filter, which is kept


def test_a_link_that_is_a_device_in_the_config(user: UserBox) -> None:
    user.linux["devices"] = [{"path": "/dev/ptmx", "type": "c", "major": 5, "minor": 2}]
    assert user.sh("readlink /dev/ptmx") == "pts/ptmx"


def test_without_a_user_namespace(user: UserBox) -> None:
    user.linux["namespaces"] = [one for one in user.linux["namespaces"] if one["type"] != "user"]
    del user.linux["uidMappings"], user.linux["gidMappings"]
    user.refused("rootless containers require user namespaces")


def test_additional_groups(user: UserBox) -> None:
    user.process["user"]["additionalGids"] = [0]
    user.refused("cannot set any additional groups in a rootless container")


def test_an_id_mapped_mount(user: UserBox) -> None:
    user.mount("/vol", str(user.bundle), "rbind", "idmap")
    user.refused("an id-mapped mount needs root")


def test_ids_that_are_not_given(user: UserBox) -> None:
    user.linux["uidMappings"] = ids((0, UID, 1), (1, 100000, 10))
    user.linux["gidMappings"] = ids((0, UID, 1))
    user.refused("newuidmap: ")


def test_oom_scores(user: UserBox) -> None:
    own = int(read("/proc/self/oom_score_adj"))
    user.process["oomScoreAdj"] = min(own + 7, 1000)
    assert user.sh("cat /proc/self/oom_score_adj") == str(min(own + 7, 1000))
    user.process["oomScoreAdj"] = own
    assert user.sh("cat /proc/self/oom_score_adj") == str(own)
    if own > -1000:
        user.process["oomScoreAdj"] = own - 1
        assert user.sh("cat /proc/self/oom_score_adj") == str(own)


def test_a_hard_limit_above_the_callers(user: UserBox) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    user.before = ["prlimit", "--nproc=500:500"]
    user.process["rlimits"] = [{"type": "RLIMIT_NPROC", "soft": 400, "hard": 600}]
    assert hard == resource.RLIM_INFINITY or hard > 600
    user.refused("RLIMIT_NPROC 600 is above the hard limit 500")
    user.process["rlimits"][0]["hard"] = 450
    assert user.sh("ulimit -Hp 2>/dev/null || ulimit -Hu") == "450"


def test_run_from_flags_needs_root(user: UserBox) -> None:
    done = user.call("run", "--rootfs", str(user.rootfs), user.id, "true")
    assert done.code == 1
    assert "run --rootfs needs root" in done.err


def test_clock_offsets(user: UserBox) -> None:
    user.namespace("time")
    user.linux["timeOffsets"] = {"boottime": {"secs": 1000000}}
    shown = float(user.sh("cat /proc/uptime").split()[0])
    assert shown - float(read("/proc/uptime").split()[0]) > 999000


def test_what_holds_no_process_is_told_of(user: UserBox) -> None:
    """Without a cgroup and a pid namespace, as runc tells of it."""
    user.process["args"] = ["/bin/true"]
    assert good(user.run()).err == ""
    user.share("pid")
    user.unmount("/proc")
    user.mount("/proc", "/proc", "rbind")
    assert "Such configuration is strongly discouraged" in good(user.run()).err


def test_limits_without_a_delegated_cgroup(user: UserBox) -> None:
    user.linux["resources"] = {"memory": {"limit": 1 << 26}}
    user.refused(
        "could not join or create cgroup: ", "resource limits need cgroup v2", "not available"
    )


def test_root_of_a_user_namespace(user: UserBox) -> None:
    """As in `podman unshare`: with a mount namespace of one's own, and without."""
    user.linux["uidMappings"] = ids((0, 0, 1))
    user.linux["gidMappings"] = ids((0, 0, 1))
    for flags in ("-Ur", "-Urm"):
        user.before = ["unshare", flags]
        assert user.sh("cat /proc/self/uid_map").split() == ["0", "0", "1"]
    user.linux["namespaces"] = [one for one in user.linux["namespaces"] if one["type"] != "user"]
    del user.linux["uidMappings"], user.linux["gidMappings"]
    user.unmount("/sys")
    assert user.sh("echo x >/dev/null; id -u") == "0"


def test_no_user_namespaces_are_explained(user: UserBox) -> None:
    """A limit of a namespace above holds for those below, so no sysctl of the host is changed."""
    from runtime import in_a_terminal, read_until

    user.process["args"] = ["/bin/true"]
    user.write()
    limit = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    shell = ["unshare", "-Ur", "sh", "-c", limit, "sh"]
    user.linux["uidMappings"] = user.linux["gidMappings"] = ids((0, 0, 1))
    user.write()
    user.before = shell
    with in_a_terminal(user.words("run", "--bundle", str(user.bundle), user.id)) as (master, _run):
        text = read_until(master, b"fix: ")
    assert b"user.max_user_namespaces=0" in text, text


@pytest.mark.requires("restriction")
def test_ubuntus_restriction_is_explained(user: UserBox) -> None:
    from runtime import in_a_terminal, read_until

    user.process["args"] = ["/bin/true"]
    user.write()
    words = user.words("run", "--bundle", str(user.bundle), user.id)
    parser("--remove")
    try:
        with in_a_terminal(words) as (master, _run):
            text = read_until(master, b"minirun(1)")
    finally:
        parser("--replace")
    assert b"kernel.apparmor_restrict_unprivileged_userns=1" in text, text
    good(user.call("run", "--bundle", str(user.bundle), user.id))


# ---------------------------------------------------------------- with a session, in the machine

NAME = "rootless-test"


def as_root(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def session() -> Iterator[int]:
    """A user of the machine with a range of ids and a systemd of his own."""
    subprocess.run(["useradd", "--create-home", NAME], check=True)
    subprocess.run(
        ["usermod", "--add-subuids", "700000-765535", "--add-subgids", "700000-765535", NAME],
        check=True,
    )
    uid = int(as_root("id", "-u", NAME))
    subprocess.run(["loginctl", "enable-linger", NAME], check=True)
    bus = Path(f"/run/user/{uid}/bus")
    # Its manager is active once it has started what it starts; the socket is there before.
    unit = f"user@{uid}.service"
    until(lambda: bus.exists() and as_root("systemctl", "is-active", unit) == "active")
    yield uid
    subprocess.run(["loginctl", "disable-linger", NAME], check=True)
    subprocess.run(["systemctl", "stop", f"user@{uid}.service"], check=True)
    until(lambda: not as_root("pgrep", "--uid", NAME))
    subprocess.run(["userdel", "--remove", NAME], check=False)


@pytest.fixture
def member(place: Path, base: Path, session: int) -> Iterator[UserBox]:
    box = UserBox(place, base, session, f"/run/user/{session}")
    yield box
    box.before = []
    box.delete("--force")


def user_unit(box: UserBox, *names: str) -> dict[str, str]:
    words = ["systemctl", "--user", "show", f"runc-{box.id}.scope", *[f"-p{n}" for n in names]]
    at = box.words().index("env")
    text = as_root(*box.words()[: at + 5], *words)
    return dict(line.split("=", 1) for line in text.splitlines())


LIMITS: dict[str, Any] = {"memory": {"limit": 1 << 26}, "pids": {"limit": 33}}


@pytest.mark.vm
def test_a_range_of_ids(member: UserBox) -> None:
    for kind in ("uidMappings", "gidMappings"):
        member.linux[kind] = ids((0, member.uid, 1), (1, 700000, 65535))
    member.process["user"] = {"uid": 5, "gid": 6, "additionalGids": [7]}
    pid = member.up()
    status = read(f"/proc/{pid}/status")
    assert "Uid:\t700004" in status
    assert "Gid:\t700005" in status
    assert "Groups:\t700006" in status
    assert member.exec("/bin/id", "-u").out == "5\n"
    good(member.call("kill", member.id, "KILL"))
    until(lambda: not alive(pid))


@pytest.mark.vm
def test_a_range_that_is_anothers(member: UserBox) -> None:
    member.linux["uidMappings"] = ids((0, member.uid, 1), (1, 100, 10))
    member.refused("newuidmap: ")


@pytest.mark.vm
def test_a_scope_of_the_users_manager(member: UserBox) -> None:
    """The caller is in a session outside of user@.service, as after a login by ssh."""
    member.command = [*member.command, "--systemd-cgroup"]
    member.linux["resources"] = LIMITS
    pid = member.up()
    group = cgroup_of(pid)
    assert f"/user@{member.uid}.service/user.slice/runc-{member.id}.scope" in str(group)
    assert read(group / "memory.max").strip() == str(1 << 26)
    assert user_unit(member, "MemoryMax", "TasksMax", "ActiveState") == {
        "MemoryMax": str(1 << 26),
        "TasksMax": "33",
        "ActiveState": "active",
    }
    # Systemd moves what exec starts, too: the caller may not.
    assert member.exec("/bin/sh", "-c", "echo in").out == "in\n"
    good(member.call("update", "--pids-limit", "44", member.id))
    assert read(group / "pids.max").strip() == "44"
    good(member.call("pause", member.id))
    assert read(group / "cgroup.freeze").strip() == "1"
    good(member.call("resume", member.id))
    good(member.delete("--force"))
    assert not alive(pid)
    assert not group.exists()
    assert user_unit(member, "LoadState") == {"LoadState": "not-found"}


@pytest.mark.vm
def test_exec_is_put_into_the_scope(member: UserBox) -> None:
    member.command = [*member.command, "--systemd-cgroup"]
    pid = member.up()
    with started(member.words("exec", member.id, "/bin/sleep", "600")) as running:
        group = cgroup_of(pid)
        until(lambda: len(read(group / "cgroup.procs").split()) > 1)
        good(member.delete("--force"))
        running.wait(LIMIT)


@pytest.mark.vm
def test_a_delegated_cgroup(member: UserBox) -> None:
    delegated = ["systemd-run", "--user", "--scope", "--quiet", "--property", "Delegate=yes"]
    member.before = delegated
    member.linux["resources"] = LIMITS
    out = member.sh("cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max; cat /proc/self/cgroup")
    assert out.split() == ["33", str(1 << 26), "0::/"]


@pytest.mark.vm
def test_none_is_delegated(member: UserBox) -> None:
    member.linux["resources"] = LIMITS
    message = member.refused("cannot set memory and pids limit: container could not join or create")
    assert "permission denied" in message
    del member.linux["resources"]
    assert member.sh("echo ran") == "ran"


@pytest.mark.vm
@pytest.mark.parametrize(
    "setting", ["kernel.unprivileged_userns_clone=0", "user.max_user_namespaces=0"]
)
def test_a_host_that_forbids_user_namespaces(member: UserBox, setting: str) -> None:
    from runtime import in_a_terminal, read_until

    path = Path("/proc/sys", *setting.partition("=")[0].split("."))
    former = read(path)
    member.process["args"] = ["/bin/true"]
    member.write()
    words = member.words("run", "--bundle", str(member.bundle), member.id)
    path.write_text("0")
    try:
        with in_a_terminal(words) as (master, _run):
            text = read_until(master, b"fix: ")
    finally:
        path.write_text(former)
    assert setting.encode() in text


@pytest.mark.vm
def test_no_session(member: UserBox) -> None:
    member.runtime = str(member.place)
    os.chown(member.place, member.uid, member.uid)
    member.command = [*member.command, "--systemd-cgroup"]
    member.refused("cannot reach the systemd user manager over d-bus")
    member.runtime = f"/run/user/{member.uid}"
