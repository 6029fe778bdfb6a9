"""Output, errors and exit status of the command line, as engines and people see them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minirun import cli, log
from minirun.criu import service
from minirun.errors import MinirunError
from minirun.options import HUMAN, VERBS

REPO = Path(__file__).parents[2]
MAIN = [sys.executable, "-ISB", str(REPO / "minirun" / "__main__.py")]


def run(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program as a user would."""
    options.setdefault("stdin", subprocess.DEVNULL)
    done = subprocess.run([*MAIN, *argv], capture_output=True, text=True, check=False, **options)
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test have its own log, and keep ours from its umask."""
    for name in ("fd", "json", "debug"):
        monkeypatch.setattr(log._Sink, name, getattr(log._Sink, name))
    monkeypatch.setattr(os, "umask", lambda mask: 0o022)


def call(monkeypatch: pytest.MonkeyPatch, argv: list[str], handler: Any) -> int:
    """Run a command line whose verb does what `handler` does."""
    monkeypatch.setattr(cli, "_handler", lambda name: handler)
    return cli.main(argv)


def fail(error: BaseException) -> Any:
    def handler(_options: Any) -> int:
        raise error

    return handler


def test_version() -> None:
    done = run("--version")
    assert done.returncode == 0
    first, *rest = done.stdout.splitlines()
    assert re.fullmatch(r"minirun version \d+\.\d+\.\d+", first)  # moby parses this line
    assert "spec: 1.3.0" in rest
    assert all(re.fullmatch(r"[a-z]+: \S+", line) for line in rest)
    assert done.stderr == ""


def test_an_installed_version_tells_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("minirun.revision")
    module.COMMIT = "v1-0-gabc"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "minirun.revision", module)
    assert cli.version().splitlines()[1] == "commit: v1-0-gabc"  # the place that moby expects


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 0
    out, err = capfd.readouterr()
    assert all(re.search(rf"^   {name} ", out, re.M) for name in (*VERBS, *HUMAN))
    assert err == ""


@pytest.mark.parametrize("name", [name for name in VERBS if name != "checkpoint"])
def test_help_of_each_verb(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"NAME:\n   minirun {name} - ")
    for option in VERBS[name].options:
        assert option.hidden or f"--{option.names[0]}" in out
    assert max(len(line) for line in out.splitlines()) <= 80
    assert err == ""


def test_help_as_a_command(capfd: pytest.CaptureFixture[str]) -> None:
    texts = []
    for argv in (["help"], ["--help"], ["help", "run"], ["run", "--help"]):
        assert cli.main(argv) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] == texts[1] != texts[2] == texts[3]


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    code = f"import sys; sys.path.append({str(REPO)!r}); from minirun import cli; "
    done = subprocess.run(
        [sys.executable, "-ISB", "-c", code + "sys.exit(cli.main(['completion', 'bash']))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == "minirun: command completion needs the Python module click\n"


def test_help_of_run_has_two_groups(capfd: pytest.CaptureFixture[str]) -> None:
    cli.main(["run", "--help"])
    oci, _, rootfs = capfd.readouterr().out.partition("OPTIONS WITH --rootfs:")
    assert "--bundle" in oci
    assert "--memory " not in oci
    assert "--memory " in rootfs
    assert "--bundle" not in rootfs


@pytest.mark.parametrize("works", [True, False])
def test_engines_learn_whether_there_are_checkpoints(
    works: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def probe() -> None:
        if not works:
            raise MinirunError("checkpoint and restore are not supported: criu is not installed")

    monkeypatch.setattr(service, "probe", probe)
    assert cli.main(["checkpoint", "--help"]) == (0 if works else 1)
    out, err = capfd.readouterr()
    assert "--leave-running" in out
    assert ("criu is not installed" in err) is not works


@pytest.mark.parametrize("argv", [["state"], ["kill", "a", "b", "c"], ["create", "--nope", "x"]])
def test_wrong_usage(argv: list[str]) -> None:
    done = run(*argv)
    assert done.returncode == 1
    assert done.stdout.startswith("Incorrect Usage.\n\nNAME:\n   minirun " + argv[0])
    assert re.fullmatch(r"minirun: .*\n", done.stderr)


@pytest.mark.parametrize(
    ("argv", "error", "advice"),
    [
        (["state"], '"state" requires exactly 1 argument(s)', "see minirun state --help"),
        (
            ["run", "--bundel", "/b", "x"],
            "flag provided but not defined: -bundel",
            "did you mean --bundle? see minirun run --help",
        ),
        (["--rot", "/x", "list"], "flag provided but not defined: -rot", "did you mean --root?"),
        (["stat", "x"], 'unknown command "stat"', "did you mean state?"),
        (["rnu", "x"], 'unknown command "rnu"', "did you mean run?"),
        (["stop", "x"], 'unknown command "stop"', "minirun kill ID, then minirun delete ID"),
        (["help", "pods"], "No help topic for 'pods'", "minirun learn pods shows that page"),
        (
            ["run", "x", "sh"],
            '"run" requires exactly 1 argument(s)',
            "a command after the ID goes with --rootfs NAME",
        ),
        (["qqqq"], 'unknown command "qqqq"', "minirun --help lists the commands"),
    ],
)
def test_wrong_usage_at_a_terminal(
    argv: list[str],
    error: str,
    advice: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "isatty", lambda fd: True)
    assert cli.main(argv) == (3 if "unknown" in error or "topic" in error else 1)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"minirun: {error}\n  fix: {advice}")
    assert err.count("\n") == 2


def test_nobody_is_told_to_remove_a_directory_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o1777)
    monkeypatch.setattr(os, "isatty", lambda fd: True)
    assert cli.main(["--root", str(tmp_path), "list"]) == 1
    err = capfd.readouterr().err
    assert f"state directory {tmp_path} is not ours alone\n  cause: owner" in err
    assert "fix: name another --root" in err
    assert "remove" not in err.partition("fix: ")[2]


def test_an_unknown_command() -> None:
    done = run("frobnicate")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == 'minirun: unknown command "frobnicate"\n'
    for argv in (["frobnicate", "-h"], ["help", "frobnicate"]):
        done = run(*argv)
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr == "minirun: No help topic for 'frobnicate'\n"


def test_one_object_per_failure(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    done = run(
        "--log", str(path), "--log-format", "json", "--root", str(tmp_path / "r"), "state", "x"
    )
    assert done.returncode == 1
    record = json.loads(path.read_text())  # the whole file, as podman reads it
    assert set(record) == {"level", "msg", "time"}
    assert record["level"] == "error"
    assert "does not exist" in record["msg"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)", record["time"])
    assert done.stderr == f"minirun: {record['msg']}\n"
    assert done.stdout == ""
    assert path.stat().st_mode & 0o777 == 0o644 & ~current_umask()


def current_umask() -> int:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"Umask:\s*(\d+)", status)
    assert found
    return int(found[1], 8)


def test_wrong_usage_is_logged_too(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    run("--log", str(path), "--log-format", "json", "state")
    assert "exactly 1" in json.loads(path.read_text())["msg"]


def test_the_log_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    run("--log", str(path), "--root", str(tmp_path / "r"), "state", "x")
    before, record = path.read_text().splitlines()
    assert before == "before"
    assert re.match(r'time="\d{4}-.*Z" level=error msg="container does not exist', record)


@pytest.mark.parametrize("name", ["none/log", "."])
def test_a_log_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    done = run("--log", str(tmp_path / name), "list")
    assert done.returncode == 1
    assert done.stderr.startswith("minirun: open log ")


def test_a_log_that_is_a_pipe_nobody_reads(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    done = run("--log", str(tmp_path / "log"), "list", timeout=20)
    assert done.returncode == 1


def test_json_without_a_log_goes_to_stderr(tmp_path: Path) -> None:
    done = run("--log-format", "json", "--root", str(tmp_path / "r"), "state", "x")
    assert json.loads(done.stderr)["level"] == "error"


def test_what_a_container_says_cannot_act(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    evil = 'a\nlevel=error\x1b[31m\x07"\udc80\u202e'
    path = tmp_path / "log"
    argv = ["--log", str(path), "list"]
    assert call(monkeypatch, argv, fail(MinirunError(evil))) == 1
    err = capfd.readouterr().err
    assert err == 'minirun: a\\nlevel=error\\x1b[31m\\x07"\\x80\\u202e\n'
    assert len(path.read_text().splitlines()) == 1
    assert "\x1b" not in path.read_text()


def test_advice_is_for_terminals(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = MinirunError("it failed", cause="permission denied somewhere", fix="do that")
    path = tmp_path / "log"
    argv = ["--log", str(path), "--log-format", "json", "list"]
    call(monkeypatch, argv, fail(error))
    assert "permission" not in capfd.readouterr().err + path.read_text()
    log._Sink.fd, log._Sink.json = log.STDERR, False
    monkeypatch.setattr(os, "isatty", lambda fd: True)
    call(monkeypatch, ["list"], fail(error))
    assert capfd.readouterr().err == (
        "minirun: it failed\n  cause: permission denied somewhere\n  fix: do that\n"
    )


def test_a_bug_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, ["list"], fail(KeyError("x"))) == 1
    assert capfd.readouterr().err == "minirun: internal error: KeyError: 'x'\n"
    assert call(monkeypatch, ["--debug", "list"], fail(KeyError("x"))) == 1
    assert "Traceback" in capfd.readouterr().err


def test_an_error_of_the_kernel(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    error = PermissionError(13, "Permission denied", "/x")
    assert call(monkeypatch, ["list"], fail(error)) == 1
    assert capfd.readouterr().err == "minirun: '/x': permission denied\n"


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (BrokenPipeError(32, "Broken pipe"), 1)]
)
def test_ends_without_a_word(
    error: BaseException,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, ["list"], fail(error)) == status
    assert capfd.readouterr() == ("", "")


def test_a_reader_that_goes_away() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*MAIN, "--help"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""


def test_warnings_are_kept_from_engines(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def handler(_options: Any) -> int:
        log.warning("odd")
        return 0

    for name, argv in (("json", ["--log-format", "json"]), ("text", [])):
        path = tmp_path / name
        assert call(monkeypatch, ["--log", str(path), *argv, "list"], handler) == 0
        assert ("odd" in path.read_text()) == (name == "text")
        assert capfd.readouterr().err == ""
    log._Sink.fd, log._Sink.json = log.STDERR, False
    call(monkeypatch, ["list"], handler)
    assert capfd.readouterr().err == "", "stderr is the container's log"


@pytest.mark.parametrize("name", VERBS)
def test_each_verb_has_its_function(name: str) -> None:
    assert callable(cli._handler(name))


def test_verbs_for_people_are_clicks(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "bash"]) == 0
    assert "_MINIRUN_COMPLETE" in capfd.readouterr().out
    assert cli.main(["completion", "csh"]) == 1
    assert capfd.readouterr().err == (
        "minirun: invalid value for '{bash|zsh|fish}': 'csh' is not one of 'bash', 'zsh', 'fish'\n"
    )


@pytest.mark.parametrize("name", HUMAN)
def test_help_of_the_verbs_for_people(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"Usage: minirun {name}" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("minirun st", ["plain,start", "plain,state"]),
        ("minirun rootfs pu", ["plain,pull"]),
        ("minirun run --memory-s", ["plain,--memory-swap"]),
        ("minirun --root ROOT kill w", ["plain,web", "plain,worker"]),
        ("minirun --root ROOT kill .", []),
        ("minirun run --rootfs al", ["plain,alpine"]),
        ("minirun run --rootfs ./", ["dir,./"]),
    ],
)
def test_completion(words: str, wanted: list[str], tmp_path: Path) -> None:
    import click  # noqa: F401 - the launcher's site-packages, for the isolated interpreter

    for name in ("web", "worker", ".network", "rootfs/alpine"):
        (tmp_path / name).mkdir(parents=True)
    environment = {
        "_MINIRUN_COMPLETE": "bash_complete",
        "COMP_WORDS": words.replace("ROOT", str(tmp_path)),
        "COMP_CWORD": str(len(words.split()) - 1),
        "MINIRUN_DATA": str(tmp_path),
        "PATH": "/usr/bin",
    }
    code = f"import sys; sys.path += {[str(REPO), *sys.path]!r}; from minirun import cli;"
    done = subprocess.run(
        [sys.executable, "-ISB", "-c", code + "sys.exit(cli.main([]))"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert sorted(done.stdout.split()) == wanted, done.stderr
