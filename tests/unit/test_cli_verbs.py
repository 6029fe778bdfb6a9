"""What each engine verb asks of `minirun.container`, and what it prints of the answer."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirun import cli, container, log, privilege
from minirun.cli import exec as exec_
from minirun.cli import explain, listing, place
from minirun.cli import spec as spec_
from minirun.cli.lifecycle import signal_number
from minirun.cli.place import container_id, default_root, state_root
from minirun.errors import DoesNotExist, MinirunError, StateError
from minirun.options import parse
from minirun.spec import (
    CPU,
    BlockIO,
    Capabilities,
    IntelRdt,
    Memory,
    Pids,
    Process,
    Resources,
    User,
)

FOUND = {
    "ociVersion": "1.3.0",
    "id": "web",
    "pid": 42,
    "status": "running",
    "bundle": "/b",
    "rootfs": "/b/rootfs",
    "created": "2026-01-02T03:04:05.000000006Z",
    "owner": "root",
}


class Calls:
    """Stands in for the functions of `minirun.container`."""

    def __init__(self) -> None:
        self.made: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {}

    def function(self, name: str) -> Any:
        def called(*args: Any, **named: Any) -> Any:
            self.made.append((name, *args, *named.values()))
            answer = self.answers.get(name)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return called


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Replace what `minirun.container` does."""
    made = Calls()
    for name in (
        *"create start run exec_process kill delete state list_all ps pause resume".split(),  # noqa: SIM905
        "update",
        "update_rdt",
    ):
        monkeypatch.setattr(container, name, made.function(name))
    monkeypatch.setattr(os, "umask", lambda mask: 0o022)
    for name in ("fd", "json", "debug"):
        monkeypatch.setattr(log._Sink, name, getattr(log._Sink, name))
    made.answers = {"run": 0, "exec_process": 0, "state": FOUND, "list_all": ([], []), "ps": []}
    return made


def run(words: str) -> int:
    return cli.main(["--root", "/r", *words.split()])


SIMPLE = {
    "start web": ("start", "/r", "web"),
    "pause web": ("pause", "/r", "web"),
    "resume web": ("resume", "/r", "web"),
    "kill web": ("kill", "/r", "web", 15, False),
    "kill web KILL": ("kill", "/r", "web", 9, False),
    "kill --all web 9": ("kill", "/r", "web", 9, True),
    "delete web": ("delete", "/r", "web", False),
    "delete --force web": ("delete", "/r", "web", True),
}


@pytest.mark.parametrize("words", SIMPLE)
def test_simple_verbs(words: str, calls: Calls, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(words) == 0
    assert SIMPLE[words] in calls.made
    assert capfd.readouterr() == ("", "")


def test_create_hands_its_flags_on(calls: Calls) -> None:
    words = "create -b /b --pid-file p --console-socket s --pidfd-socket q --no-pivot"
    assert run(words + " --no-new-keyring --preserve-fds 3 web") == 0
    name, root, cid, launch = calls.made[0]
    assert (name, root, cid) == ("create", "/r", "web")
    assert vars(launch) == {
        **vars(launch),
        "bundle": "/b",
        "pid_file": "p",
        "console_socket": "s",
        "pidfd_socket": "q",
        "no_pivot": True,
        "no_new_keyring": True,
        "preserve_fds": 3,
        "detach": True,
    }


def test_the_bundle_is_here_unless_said(calls: Calls) -> None:
    run("create web")
    assert calls.made[0][3].bundle == "."


def test_run_gives_the_containers_status(calls: Calls) -> None:
    calls.answers["run"] = 137
    assert run("run web") == 137
    assert calls.made[0][4:] == (False, False, None)
    run("run --detach --keep web")
    assert calls.made[1][4:6] == (True, True)


@pytest.mark.parametrize("verb", ["create", "run"])
def test_failures_begin_with_the_verb(
    verb: str, calls: Calls, capfd: pytest.CaptureFixture[str]
) -> None:
    inner = 'exec: "nope": executable file not found in $PATH'
    calls.answers[verb] = MinirunError(inner)
    assert run(f"{verb} web") == 1
    assert capfd.readouterr().err == f"minirun: {verb} failed: {inner}\n"


def test_exec_fails_with_255(
    calls: Calls, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "p.json").write_text('{"args": ["x"], "cwd": "/"}')
    calls.answers["exec_process"] = MinirunError("container not running")
    assert run(f"exec --process {tmp_path}/p.json web") == 255
    assert capfd.readouterr().err == "minirun: exec failed: container not running\n"


def test_exec_of_a_file(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text('{"args": ["x"], "cwd": "/", "user": {"uid": 5}}')
    calls.answers["exec_process"] = 3
    flags = "--detach --pid-file P --console-socket S --preserve-fds 1 --cgroup sub --ignore-paused"
    assert run(f"exec {flags} --process {tmp_path}/p.json web") == 3
    _, root, cid, process, launch = calls.made[0]
    assert (root, cid) == ("/r", "web")
    assert process == Process(args=("x",), cwd="/", user=User(uid=5))
    assert (launch.detach, launch.pid_file, launch.console_socket) == (True, "P", "S")
    assert (launch.preserve_fds, launch.cgroup, launch.ignore_paused) == (1, "sub", True)


BASE = Process(
    args=("sh",),
    env=("A=1",),
    cwd="/",
    terminal=True,
    user=User(uid=1, gid=2, additional_gids=(3,)),
    capabilities=Capabilities(bounding=("CAP_KILL",), inheritable=("CAP_KILL",)),
    no_new_privileges=True,
)


def exec_of(words: str, base: Process = BASE) -> Process:
    return exec_.process_of(parse(["exec", *words.split()]), base)


def test_exec_takes_the_containers_process() -> None:
    assert exec_of("web ls -l") == BASE.replace(args=("ls", "-l"), terminal=False)


def test_exec_changes_it_as_the_flags_say() -> None:
    made = exec_of(
        "-t -e B=2 -e A=3 --cwd /tmp -u 7:8 -g 9 -c CAP_FOWNER --no-new-privs=false"
        " --apparmor prof --process-label lab web id"
    )
    caps = Capabilities(
        bounding=("CAP_KILL", "CAP_FOWNER"),
        effective=("CAP_FOWNER",),
        permitted=("CAP_FOWNER",),
        inheritable=("CAP_KILL",),
        ambient=("CAP_FOWNER",),
    )
    assert made == BASE.replace(
        args=("id",),
        terminal=True,
        env=("A=1", "B=2", "A=3"),
        cwd="/tmp",
        user=User(uid=7, gid=8, additional_gids=(3, 9)),
        capabilities=caps,
        no_new_privileges=False,
        apparmor_profile="prof",
        selinux_label="lab",
    )


def test_a_user_without_a_group_keeps_the_containers() -> None:
    assert exec_of("-u 7 web id").user == User(uid=7, gid=2, additional_gids=(3,))


def test_ambient_capabilities_need_inheritable_ones() -> None:
    base = BASE.replace(capabilities=None)
    caps = exec_of("--cap CAP_KILL web id", base).capabilities
    assert caps is not None
    assert (caps.ambient, caps.bounding) == ((), ("CAP_KILL",))


def test_exec_needs_a_command() -> None:
    with pytest.raises(MinirunError, match="process args cannot be empty"):
        exec_of("web")


USERS = {
    "0": (0, 2),
    "1": (1, 2),
    "1:2": (1, 2),
    "0:0": (0, 0),
    "4294967294:4294967294": (4294967294, 4294967294),
}
BAD_USERS = [
    *("01", "+1", " 1", "1 ", "1:", ":1", "0x1", "1e3", "\u0661", "1_000", "-1", "4294967295"),
    *("4294967296", "1:2:3", "", "root", "1\0", "1\n", "1:4294967295", "9" * 400),
]


@pytest.mark.parametrize("text", USERS)
def test_users(text: str) -> None:
    user = exec_.user_of(parse(["exec", "-u", text, "web", "x"]), BASE.user)
    assert (user.uid, user.gid) == USERS[text]


@pytest.mark.parametrize("text", BAD_USERS, ids=ascii)
def test_bad_users(text: str) -> None:
    with pytest.raises(MinirunError, match=r"invalid [ug]id"):
        exec_.user_of(parse(["exec", "-u", text, "web", "x"]), BASE.user)


@given(st.text(max_size=6))
def test_no_user_is_guessed(text: str) -> None:
    """CVE-2026-30892: `-u 1` was uid 0 to a lax parser."""
    try:
        user = exec_.user_of(parse(["exec", f"--user={text}", "web", "x"]), BASE.user)
    except MinirunError:
        return
    assert text in (str(user.uid), f"{user.uid}:{user.gid}")


@pytest.mark.parametrize("path", ["../x", "a/../../b", "cpu:a"])
def test_cgroups_above_the_containers(path: str) -> None:
    with pytest.raises(MinirunError, match="--cgroup"):
        exec_.cgroup_of((path,))


def test_state_is_json(calls: Calls, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("state web") == 0
    out = capfd.readouterr().out
    assert json.loads(out) == FOUND
    assert out.startswith('{\n  "ociVersion": "1.3.0",\n')


def test_state_of_nothing(calls: Calls, capfd: pytest.CaptureFixture[str]) -> None:
    calls.answers["state"] = DoesNotExist("web")
    assert run("state web") == 1
    assert capfd.readouterr() == ("", "minirun: container does not exist: web\n")


def test_list(calls: Calls, capfd: pytest.CaptureFixture[str]) -> None:
    calls.answers["list_all"] = ([FOUND], ["container x: broken"])
    run("list")
    out, err = capfd.readouterr()
    assert out == (
        "ID          PID         STATUS      BUNDLE      CREATED                          OWNER\n"
        "web         42          running     /b          2026-01-02T03:04:05.000000006Z   root\n"
    )
    assert err == "minirun: warning: container x: broken\n"
    run("list -q")
    assert capfd.readouterr().out == "web\n"
    run("list --format json")
    assert json.loads(capfd.readouterr().out) == [FOUND]


def test_list_of_nothing(calls: Calls, capfd: pytest.CaptureFixture[str]) -> None:
    run("list")
    assert capfd.readouterr().out.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    run("list -f json")
    assert json.loads(capfd.readouterr().out) == []


def test_a_list_on_a_terminal_shows_no_escape_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda fd: True)
    assert "\x1b" not in listing.table([{**FOUND, "bundle": "/\x1b[31m"}])


def test_ps_as_json(calls: Calls, capfd: pytest.CaptureFixture[str]) -> None:
    calls.answers["ps"] = [5, 6]
    run("ps -f json web")
    assert json.loads(capfd.readouterr().out) == [5, 6]


def test_ps_shows_the_hosts_lines(calls: Calls, capfd: pytest.CaptureFixture[str]) -> None:
    calls.answers["ps"] = [os.getpid()]
    assert run("ps web") == 0
    heading, *lines = capfd.readouterr().out.splitlines()
    assert "PID" in heading.split()
    assert [line.split()[1] for line in lines] == [str(os.getpid())]
    assert run("ps web -o pid,comm -e") == 0
    assert capfd.readouterr().out.splitlines()[1].split()[0] == str(os.getpid())


def test_selecting_lines_of_ps() -> None:
    output = "UID PID CMD\nroot 1 init\nroot 12 sh 1\nshort\n"
    assert listing.select(output, frozenset([12])) == "UID PID CMD\nroot 12 sh 1\n"
    for bad in ("", "UID CMD\n"):
        with pytest.raises(MinirunError, match="couldn't find PID field"):
            listing.select(bad, frozenset([1]))


def test_ps_of_bad_options(calls: Calls, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("ps web --nope") == 1
    assert "ps: exit status" in capfd.readouterr().err


SIGNALS = {
    "TERM": 15, "SIGTERM": 15, "sigterm": 15, "term": 15, "9": 9, "KILL": 9, "0": 0, "64": 64,
    "RTMIN": 34, "SIGRTMIN+1": 35, "RTMAX": 64, "RTMAX-1": 63, "USR1": 10, "009": 9,
}  # fmt: skip
BAD_SIGNALS = [
    *("65", "-1", "-9", "SIGKILL;rm", "SIG", "", "_BLOCK", "SIG_BLOCK", "DFL", "BLOCK", "NOPE"),
    *("RTMIN-1", "RTMAX+1", "RTMIN+99999", "TERM+1", "9 ", "\u0669", "1_0", "9" * 5000, "K\0"),
]


@pytest.mark.parametrize("text", SIGNALS)
def test_signals(text: str) -> None:
    assert signal_number(text) == SIGNALS[text]


@pytest.mark.parametrize("text", BAD_SIGNALS, ids=lambda text: ascii(text[:20]))
def test_bad_signals(text: str) -> None:
    with pytest.raises(MinirunError, match="unknown signal"):
        signal_number(text)


UPDATES = {
    "--memory 64m": Resources(memory=Memory(limit=64 << 20)),
    "--memory -1": Resources(memory=Memory(limit=-1, swap=-1)),
    "--memory -1 --memory-swap 1g": Resources(memory=Memory(limit=-1, swap=1 << 30)),
    "--memory-reservation 1k": Resources(memory=Memory(reservation=1024)),
    "--cpu-quota -1 --cpu-period 1000": Resources(cpu=CPU(quota=-1, period=1000)),
    "--cpu-share 5 --cpu-burst 6 --cpu-idle 1": Resources(cpu=CPU(shares=5, burst=6, idle=1)),
    "--cpuset-cpus 0-1 --cpuset-mems 0": Resources(cpu=CPU(cpus="0-1", mems="0")),
    "--pids-limit -1": Resources(pids=Pids(limit=-1)),
    "--blkio-weight 500": Resources(block_io=BlockIO(weight=500)),
    "--kernel-memory 1g --kernel-memory-tcp 1g": Resources(),
    "--cpu-rt-period 5 --cpu-rt-runtime 4": Resources(
        cpu=CPU(realtime_period=5, realtime_runtime=4)
    ),
}


@pytest.mark.parametrize("words", UPDATES)
def test_update(words: str, calls: Calls) -> None:
    assert run(f"update {words} web") == 0
    assert calls.made == [("update", "/r", "web", UPDATES[words])]


@pytest.mark.parametrize(
    "words",
    ["--memory x", "--cpu-share -1", "--cpu-period 1_0", "--blkio-weight 5", "--cpu-idle x"],
)
def test_bad_updates(words: str, calls: Calls, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(f"update {words} web") == 1
    assert words.split(maxsplit=1)[0].lstrip("-") in capfd.readouterr().err
    assert calls.made == []


def test_schemas_are_no_limits(calls: Calls, tmp_path: Path) -> None:
    assert run("update --l3-cache-schema L3:0=f --mem-bw-schema MB:0=50 web") == 0
    (tmp_path / "r.json").write_text('{"pids": {"limit": 5}}')
    assert run(f"update --mem-bw-schema MB:0=50 -r {tmp_path}/r.json web") == 0
    both = IntelRdt(l3_cache_schema="L3:0=f", mem_bw_schema="MB:0=50")
    assert calls.made == [
        ("update_rdt", "/r", "web", both),
        ("update_rdt", "/r", "web", IntelRdt(mem_bw_schema="MB:0=50")),
        ("update", "/r", "web", Resources(pids=Pids(limit=5))),
    ]


def test_update_from_a_file(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"memory": {"limit": 5}, "unified": {"a.b": "c"}}')
    assert run(f"update --resources {tmp_path}/r.json --memory 9g web") == 0
    assert calls.made[0][3] == Resources(memory=Memory(limit=5), unified={"a.b": "c"})


def test_update_from_stdin(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    source = io.BytesIO(b'{"pids": {"limit": 5}}')
    monkeypatch.setattr(os, "read", lambda fd, size: source.read(5))
    assert run("update --resources=- web") == 0
    assert calls.made[0][3] == Resources(pids=Pids(limit=5))


def test_update_of_nonsense(
    calls: Calls, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "r.json").write_text('{"memory": {"limit": "1g"}}')
    assert run(f"update -r {tmp_path}/r.json web") == 1
    assert "resources.memory.limit: must be an integer" in capfd.readouterr().err


@pytest.mark.parametrize("rootless", [False, True])
def test_spec_is_runcs(rootless: bool, tmp_path: Path, calls: Calls) -> None:
    flag = "--rootless" if rootless else ""
    assert run(f"spec {flag} --bundle {tmp_path}") == 0
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert path.read_text() == json.dumps(config, indent="\t")
    assert path.stat().st_mode & 0o777 == 0o644
    kinds = [entry["type"] for entry in config["linux"]["namespaces"]]
    assert ("user" in kinds, "network" in kinds) == (rootless, not rootless)
    assert ("resources" in config["linux"]) == (not rootless)
    assert config["process"]["capabilities"].keys() == {"bounding", "effective", "permitted"}


def test_spec_overwrites_nothing(
    tmp_path: Path, calls: Calls, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("mine")
    assert run(f"spec -b {tmp_path}") == 1
    assert (tmp_path / "config.json").read_text() == "mine"
    assert "File config.json exists. Remove it first" in capfd.readouterr().err


def test_spec_for_a_user() -> None:
    config = spec_.example(unified=False)
    spec_.to_rootless(config, 1000, 100)
    assert config["linux"]["uidMappings"] == [{"containerID": 0, "hostID": 1000, "size": 1}]
    assert config["linux"]["gidMappings"] == [{"containerID": 0, "hostID": 100, "size": 1}]
    options = [option for mount in config["mounts"] for option in mount.get("options", ())]
    assert not [option for option in options if option.startswith(("uid=", "gid="))]
    sys_ = next(mount for mount in config["mounts"] if mount["destination"] == "/sys")
    assert (sys_["type"], sys_["source"], sys_["options"][0]) == ("none", "/sys", "rbind")


IDS = ["web", "a", "A.b_c+d-e", "0", "x" * 255]
BAD_IDS = [
    *("..", ".", "a/b", "../x", "-x", ".x", "a b", "a\n", "é", "\u0663", "a\0", "%2e%2e", ""),
    *("x" * 256, "a:b", "a\\b", "\x1b[31m"),
]


@pytest.mark.parametrize("text", IDS)
def test_ids(text: str) -> None:
    assert container_id(parse(["state", "--", text])) == text


@pytest.mark.parametrize("text", BAD_IDS, ids=ascii)
def test_bad_ids(text: str, calls: Calls, capfd: pytest.CaptureFixture[str]) -> None:
    for verb in ("state", "start", "delete", "create", "run"):
        assert cli.main([verb, "--", text]) == 1
    err = capfd.readouterr().err
    assert err.count("\n") == 5
    assert err.count("invalid container ID format" if text else "cannot be empty") == 5
    assert calls.made == []


@pytest.mark.parametrize("root", ["/", "", ".", "/x/.."])
def test_bad_roots(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    with pytest.raises(MinirunError, match="should not be set to /"):
        state_root(parse(["--root", root, "list"]))


def test_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    assert state_root(parse(["--root", "x", "list"])) == "/usr/x"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    monkeypatch.setenv("USER", "root")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_root() == "/run/minirun"
    monkeypatch.setenv("USER", "ann")
    assert default_root() == "/run/minirun"
    monkeypatch.setattr(place, "in_user_namespace", lambda: True)
    assert default_root() == "/run/user/1/minirun"
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    assert default_root() == "/run/user/1/minirun"


def test_the_driver_is_handed_on(calls: Calls) -> None:
    for words in ([], ["--systemd-cgroup"]):
        assert cli.main([*words, "create", "web"]) == 0
    assert [call[-1].systemd_cgroup for call in calls.made] == [False, True]
    assert cli.main(["--systemd-cgroup", "state", "web"]) == 0


@pytest.mark.parametrize(
    ("flag", "root", "expected"),
    [("auto", True, False), ("auto", False, True), ("true", True, True), ("false", False, False)],
)
def test_rootless(
    flag: str, root: bool, expected: bool, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privilege, "host_root", lambda: root)
    assert cli.main(["--rootless", flag, "create", "web"]) == 0
    assert calls.made[0][-1].rootless == expected


def test_nonsense_for_rootless(calls: Calls, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--rootless=maybe", "create", "web"]) == 1
    assert "--rootless: 'maybe' is not true, false or auto" in capfd.readouterr().err
    assert calls.made == []


def test_a_user_without_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(MinirunError, match="XDG_RUNTIME_DIR is not set"):
        default_root()
    monkeypatch.setattr(place, "_logged_in", lambda: "/run/user/54321")
    assert default_root() == "/run/user/54321/minirun"


def test_negative_descriptors(calls: Calls, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("create --preserve-fds -1 web") == 1
    assert calls.made == []


class Bundles:
    """Stands in for minirun.engine.bundle."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from minirun.engine import bundle

        self.made: list[tuple[Any, ...]] = []
        prepared = bundle.Prepared("/data/web", ["a note"])
        prepared.identity = IDENTITY

        def prepare(options: Any, cid: str, command: Any) -> Any:
            self.made.append(("prepare", options.memory, cid, tuple(command)))
            return prepared

        monkeypatch.setattr(bundle, "prepare", prepare)
        monkeypatch.setattr(bundle, "discard", self.recorder("discard"))
        monkeypatch.setattr(bundle, "discard_leftover", self.recorder("leftover"))
        monkeypatch.setattr(bundle, "managed", lambda annotations, path: path == "/data/web")
        monkeypatch.setattr(bundle, "identity_of", lambda _path: IDENTITY)

    def recorder(self, name: str) -> Any:
        return lambda *args: self.made.append((name, *args))


PREPARED = ("prepare", "64m", "web", ("httpd", "-f"))
IDENTITY = (1, 2, 3)
DISCARDED = ("discard", "/data/web", IDENTITY)


@pytest.mark.parametrize(
    ("flags", "error", "steps"),
    [
        ("", None, [PREPARED, DISCARDED]),
        ("", MinirunError("x"), [PREPARED, DISCARDED]),
        ("--detach", None, [PREPARED]),
        ("--keep", None, [PREPARED]),
        ("--detach", KeyboardInterrupt(), [PREPARED, DISCARDED]),
    ],
)
def test_a_written_bundle_is_removed(
    flags: str,
    error: BaseException | None,
    steps: list[Any],
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundles = Bundles(monkeypatch)
    if error is not None:
        calls.answers["run"] = error
    run(f"run {flags} --rootfs alpine --memory 64m web httpd -f")
    assert bundles.made == steps
    assert calls.made[0][3].bundle == "/data/web"


def test_delete_removes_a_written_bundle(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles = Bundles(monkeypatch)
    run("delete web")
    assert bundles.made == []
    marked = {"annotations": {"run.minirun.managed": "true"}}
    calls.answers["state"] = {**FOUND, **marked, "bundle": "/home/x"}
    run("delete web")
    assert bundles.made == [], "the annotation alone may be anybody's"
    calls.answers["state"] = {**FOUND, **marked, "bundle": "/data/web"}
    run("delete web")
    assert bundles.made == [DISCARDED]
    calls.answers["delete"] = MinirunError("still running")
    run("delete web")
    assert bundles.made == [DISCARDED]


def test_delete_of_what_was_killed_half_way(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles = Bundles(monkeypatch)
    calls.answers["state"] = DoesNotExist("x")
    assert run("delete --force web") == 0
    assert cli.main(["delete", "--force", "web"]) == 0
    assert bundles.made == [("leftover", "web", "/r"), ("leftover", "web", None)]


def test_delete_of_a_state_that_cannot_be_read(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    Bundles(monkeypatch)
    calls.answers["state"] = StateError("container web has no usable state")
    assert run("delete web") == 1
    assert run("delete --force web") == 0
    assert calls.made[-1] == ("delete", "/r", "web", True)


def test_explain() -> None:
    events = [
        {"stage": "parent", "step": "a.b", "what": "Do it", "why": "", "calls": [], "us": 5},
        {
            "stage": "inner",
            "step": "c.d",
            "what": "Do more",
            "why": "of this",
            "calls": [["f(1)", 0, 0], ['g("\x1b")', -1, 2]],
            "us": 1500,
        },
    ]
    text = explain.render(events)
    assert "outside the container:\n  Do it " in text
    assert "      because of this\n      f(1) = 0\n" in text
    assert 'g("\\x1b") = -1 ENOENT (No such file or directory)' in text
    assert text.endswith("2 steps, 1.5 ms\n")
