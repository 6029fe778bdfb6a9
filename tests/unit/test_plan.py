"""The plan: the same steps as execution, told in three forms."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from minirun import plan, recipe
from minirun.mounts.entries import shell_mount
from minirun.setup import Launch, Setup
from minirun.spec import Mount, Spec
from minirun.step import follow, name_of, sentence_of, step, wanted

if TYPE_CHECKING:
    from pathlib import Path

MINIMAL: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "root": {"path": "rootfs"},
    "process": {"args": ["sleep", "it's"], "cwd": "/", "env": ["A=b c"]},
    "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
}


def setup_of(**changes: Any) -> Setup:
    """Make the record of the minimal configuration with some of its parts changed."""
    spec = Spec.decode({**MINIMAL, **changes})
    assert spec.process is not None
    setup = Setup("web", spec, spec.process, "/bundle", Launch("/bundle"))
    setup.root_path = "/bundle/rootfs"
    return setup


def names(setup: Setup) -> list[str]:
    return [entry["step"] for entry in plan.steps_of(setup)]


def test_the_plan_is_what_execution_would_follow() -> None:
    setup = setup_of(hostname="web")
    expected = [name_of(f) for _, steps in recipe.CREATE for f in steps if wanted(f, setup)]
    assert names(setup) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"hostname": "web"}, "hostname.set_hostname"),
        ({"hooks": {"poststop": [], "prestart": [{"path": "/x"}]}}, "hooks.prestart"),
        ({"mounts": [{"destination": "/proc", "type": "proc"}]}, "mounts.mount_all"),
        (
            {"linux": {"namespaces": [{"type": "mount"}, {"type": "network"}]}},
            "namespaces.raise_loopback",
        ),
        (
            {"linux": {"namespaces": [{"type": "mount"}, {"type": "user"}]}},
            "namespaces.unshare_user",
        ),
    ],
)
def test_a_step_is_planned_only_where_it_is_asked_for(
    changes: dict[str, Any], expected: str
) -> None:
    assert expected in names(setup_of(**changes))
    assert expected not in names(setup_of())


def test_what_is_not_wanted_is_not_taken() -> None:
    taken = []

    @step(lambda setup: setup.spec.hostname)
    def named(_setup: Setup) -> None:
        """Take a name"""
        taken.append(1)

    follow("parent", (named,), setup_of())
    assert taken == []
    follow("parent", (named,), setup_of(hostname="web"))
    assert taken == [1]


def test_every_step_says_what_it_does() -> None:
    for _, steps in recipe.CREATE:
        for function in steps:
            sentence = sentence_of(function)
            assert sentence[0].isupper(), name_of(function)
            assert not sentence.endswith("."), name_of(function)


def test_the_steps_are_json() -> None:
    entries = plan.steps_of(setup_of(hostname="web"))
    assert json.loads(json.dumps(entries)) == entries
    assert {"stage", "step", "what", "why", "details"} == set(entries[0])


def test_the_text_names_processes_and_steps() -> None:
    text = plan.text_of(setup_of(hostname="web"))
    assert "the container's first process:" in text
    assert "hostname.set_hostname" in text


def test_the_text_leaves_the_terminal_alone() -> None:
    text = plan.text_of(setup_of(process={"args": ["\033]0;gone\a\n  1. Fake"], "cwd": "/"}))
    assert "execve(\\x1b]0;gone\\x07\\n  1. Fake)" in text
    assert "\033" not in text


def test_the_script_quotes_what_it_is_given() -> None:
    script = plan.shell_of(setup_of())
    assert "'it'\\''s'" in script
    assert "'A=b c'" in script
    assert "unshare" in script


EVIL = "/x'$(boom)`boom`\n boom;\""


def test_no_word_of_the_configuration_is_run_by_the_shell() -> None:
    mounts: list[dict[str, Any]] = [
        {"destination": EVIL, "type": "bind", "source": EVIL, "options": [EVIL, "bind"]},
        {"destination": EVIL, "type": EVIL, "source": EVIL, "options": [EVIL]},
        {"destination": EVIL, "type": "tmpfs", "options": ["remount", EVIL]},
        {"destination": EVIL, "type": "tmpfs", "options": ["tmpcopyup"]},
    ]
    linux = {
        "namespaces": [{"type": "mount"}, {"type": "uts"}, {"type": "network", "path": EVIL}],
        "cgroupsPath": EVIL.replace("\n", ""),
        "devices": [{"path": EVIL, "type": "c", "major": 1, "minor": 3}],
        "maskedPaths": [EVIL],
        "readonlyPaths": [EVIL],
        "resources": {"unified": {"pids.max": EVIL.replace("\n", "")}},
        "sysctl": {"net.a": EVIL},
    }
    sets = {key: [EVIL] for key in ("bounding", "inheritable", "ambient")}
    process = {"args": [EVIL], "cwd": EVIL, "env": [f"A={EVIL}"], "capabilities": sets}
    setup = setup_of(hostname=EVIL, mounts=mounts, linux=linux, process=process)
    setup.cid, setup.root_path = EVIL, EVIL
    script = plan.shell_of(setup)
    for text in (EVIL, EVIL.replace("\n", "")):
        inner = re.escape(text.replace("'", "'\\''"))
        script, count = re.subn(f"'[^'\n]*{inner}[^'\n]*'", "''", script)
        assert count
    left = [line for line in script.splitlines() if "boom" in line]
    assert all(line.startswith("# A container like /x") for line in left), left


def test_the_script_says_what_it_leaves_out() -> None:
    filtered = setup_of(
        linux={
            "namespaces": [{"type": "mount"}],
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
        }
    )
    assert "Left out: the system call filter" in plan.shell_of(filtered)
    assert "Left out" not in plan.shell_of(setup_of())
    hooked = setup_of(hooks={"createRuntime": [{"path": "/x"}]})
    assert "Left out: the hooks" in plan.shell_of(hooked)


def test_the_script_knows_what_options_do_besides_mounting() -> None:
    def line(**entry: Any) -> str:
        return shell_mount(Mount.decode(entry, "mounts[0]"))

    remount = line(destination="/vol", type="tmpfs", options=["remount", "ro"])
    assert remount == "mount -o 'remount,ro' \"$root\"/vol"
    copied = line(destination="/vol", type="tmpfs", options=["tmpcopyup", "nosuid"])
    assert "tmpcopyup" not in copied
    assert copied.index("cp -a") < copied.index("mount -i -t tmpfs -o nosuid")


def test_the_script_says_that_no_tool_mounts_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    entry = {"destination": "/x", "type": "bind", "source": str(tmp_path / "link")}
    mount = Mount.decode({**entry, "options": ["bind", "src-nofollow"]}, "mounts[0]")
    assert shell_mount(mount).startswith("# Left out, for mount(8) follows symbolic links: bind ")
