"""The grammar of the command line, as runc 1.5 and its callers speak it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirun.errors import MinirunError, UsageError
from minirun.grammar import FLAG, LIST, NUMBER
from minirun.options import GLOBALS, HUMAN, ROOTFS, VERBS, parse


def read(words: str) -> Any:
    return parse(words.split())


def values(argv: str) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """Parse words; return the verb, the positionals and what was given with its value."""
    options = parse(argv.split())
    given = {key: getattr(options, key) for key in options._given}
    return options.verb, options.args, given


ENGINES = {
    # conmon for podman
    "--log-format=json --log /l create --bundle /b --pid-file /p --no-pivot --preserve-fds 2"
    " --console-socket /s ID": (
        "create",
        ("ID",),
        {
            "bundle": "/b",
            "pid_file": "/p",
            "no_pivot": True,
            "preserve_fds": 2,
            "console_socket": "/s",
        },
    ),
    "--systemd-cgroup exec --pid-file P --process F --detach --preserve-fds 0 ID": (
        "exec",
        ("ID",),
        {"pid_file": "P", "process": "F", "detach": True, "preserve_fds": 0},
    ),
    "update --resources=/r ID": ("update", ("ID",), {"resources": "/r"}),
    "kill --all ID 9": ("kill", ("ID", "9"), {"all": True}),
    "delete --force ID": ("delete", ("ID",), {"force": True}),
    # containerd's shim
    "--root /run/docker/runtime-runc/moby --log /b/log.json --log-format json --systemd-cgroup"
    " create --bundle /b --pid-file /b/init.pid --no-new-keyring ID": (
        "create",
        ("ID",),
        {"bundle": "/b", "pid_file": "/b/init.pid", "no_new_keyring": True},
    ),
    "--rootless=true ps --format json ID": ("ps", ("ID",), {"format": "json"}),
    "update --resources=- ID": ("update", ("ID",), {"resources": "-"}),
    # CRI-O
    "--root=/run/x state ID": ("state", ("ID",), {}),
    "kill ID TERM": ("kill", ("ID", "TERM"), {}),
}


@pytest.mark.parametrize("argv", ENGINES)
def test_what_engines_call(argv: str) -> None:
    assert values(argv) == ENGINES[argv]


def test_global_options() -> None:
    options = read("--root /r --log=/l -log-format json -debug --rootless auto list")
    assert (options.root, options.log, options.log_format) == ("/r", "/l", "json")
    assert (options.debug, options.rootless, options.systemd_cgroup) == (True, "auto", False)
    assert read("--criu /usr/sbin/criu list").verb == "list"  # as runc before 1.1 had it


@pytest.mark.parametrize("flag", ["--debug=false", "-debug=0", "--debug=F"])
def test_a_flag_can_be_taken_back(flag: str) -> None:
    assert parse(["--debug", flag, "list"]).debug is False


def test_absent_options_have_their_defaults() -> None:
    options = parse(["run", "--rootfs", "alpine", "web"])
    assert (options.memory, options.env, options.tty, options.preserve_fds) == (None, (), False, 0)
    assert not options.given("memory")
    assert not options.given("pids-limit")


def test_options_may_follow_the_id() -> None:
    assert values("delete ID --force") == ("delete", ("ID",), {"force": True})
    assert values("create ID --bundle /b") == ("create", ("ID",), {"bundle": "/b"})


@pytest.mark.parametrize("verb", ["exec", "ps", "kill"])
def test_these_pass_on_all_that_follows_the_id(verb: str) -> None:
    assert parse([verb, "ID", "-x"]).args == ("ID", "-x")


def test_the_command_of_run_is_not_read() -> None:
    options = read("run --rootfs alpine --memory 64m web sh --memory 1 --help -- -x")
    assert options.args == ("web", "sh", "--memory", "1", "--help", "--", "-x")
    assert options.memory == "64m"


@pytest.mark.parametrize("argv", ["exec ID -- sh -c x", "run --rootfs a ID -- sh -c x"])
def test_dashes_part_our_options_from_the_command(argv: str) -> None:
    assert parse(argv.split()).args == ("ID", "sh", "-c", "x")


def test_dashes_end_the_options() -> None:
    assert parse(["delete", "--", "-f"]).args == ("-f",)


def test_short_flags_can_be_bundled() -> None:
    options = read("run --rootfs a -ite A=b web")
    assert (options.interactive, options.tty, options.env) == (True, True, ("A=b",))


def test_lists_are_not_split() -> None:
    options = read("run --rootfs a -v /a:/b:ro,z -v /c:/d --mount type=bind,src=/x web")
    assert options.volume == ("/a:/b:ro,z", "/c:/d")
    assert options.mount == ("type=bind,src=/x",)


def test_the_last_one_of_a_value_counts() -> None:
    assert read("--root /a --root /b list").root == "/b"


def test_a_value_may_look_like_an_option() -> None:
    assert read("run --rootfs a --memory-swap -1 web").memory_swap == "-1"


WRONG = {
    "state": "exactly 1",
    "state a b": "exactly 1",
    "kill": "a minimum of 1",
    "kill a b c": "a maximum of 2",
    "list x": "exactly 0",
    "run a b": "exactly 1",
    "run --rootfs a": "a minimum of 1",
    "create --nope x": "flag provided but not defined: -nope",
    "--nope list": "flag provided but not defined: -nope",
    "create -zz x": "flag provided but not defined: -zz",
    "create -db /x y": "flag provided but not defined: -db",
    "run -bd x y": "flag provided but not defined: -bd",
    "--root": "flag needs an argument: --root",
    "create --bundle": "flag needs an argument: --bundle",
    "--debug=maybe list": "not a boolean",
    "create --preserve-fds x y": "not a whole number",
    "create --preserve-fds 1_0 y": "not a whole number",
    "create --preserve-fds +1 y": "not a whole number",
    "create --preserve-fds \u0661 y": "not a whole number",
    "--log-format xml list": "invalid log-format option",
    "list --format xml": "invalid format option",
}


@pytest.mark.parametrize("argv", WRONG)
def test_wrong_command_lines(argv: str) -> None:
    with pytest.raises(UsageError, match=WRONG[argv]):
        parse(argv.split())


def test_an_error_knows_where_the_log_is() -> None:
    with pytest.raises(UsageError) as caught:
        read("--log /l state")
    assert caught.value.options.log == "/l"  # type: ignore[attr-defined]
    assert caught.value.verb == "state"  # type: ignore[attr-defined]


@pytest.mark.parametrize("option", [option for option in ROOTFS if option.key != "rootfs"])
def test_options_of_a_written_bundle_need_rootfs(option: Any) -> None:
    value = [] if option.kind == FLAG else ["1"]
    with pytest.raises(MinirunError, match=f"--{option.names[0]} needs --rootfs"):
        parse(["run", f"--{option.names[0]}", *value, "web"])


def test_a_bundle_is_either_given_or_written() -> None:
    with pytest.raises(MinirunError, match="exclude each other"):
        read("run --bundle b --rootfs a web")


def test_help_is_asked_for_before_anything_is_checked() -> None:
    assert parse(["state", "--help"]).help
    assert parse(["-h"]).help
    assert parse(["run", "-h"]).help


def test_verbs_for_people_get_their_words_untouched() -> None:
    options = read("--root /r rootfs pull --help alpine")
    assert (options.verb, options.args) == ("rootfs", ("pull", "--help", "alpine"))


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_the_table_is_consistent(verb: Any) -> None:
    names = [name for option in (*verb.options, *GLOBALS[-2:-1]) for name in option.names]
    assert len(names) == len(set(names)), "an option's name is there twice"
    keys = [option.key for option in verb.options]
    # A verb's value would hide the global one of the same name.
    assert not set(keys) & {option.key for option in GLOBALS} - {"rootless"}
    assert all(option.help and not option.help.endswith(".") for option in verb.options)
    assert verb.name not in HUMAN
    assert all(option.kind in (FLAG, LIST, NUMBER, "text") for option in verb.options)


@given(st.lists(st.text(max_size=8) | st.sampled_from(["-", "--", "-e", "--rootfs", "run", "x"])))
def test_any_words_are_read_or_refused(argv: list[str]) -> None:
    try:
        parse(argv)
    except MinirunError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("words", "systemd", "manager"),
    [
        (["--cgroup-manager", "systemd"], True, "systemd"),
        (["--systemd-cgroup", "--cgroup-manager=disabled"], False, "disabled"),
        (["--systemd-cgroup"], True, None),
    ],
)
def test_the_cgroup_manager_is_a_word_for_systemd_cgroup_too(
    words: list[str], systemd: bool, manager: str | None
) -> None:
    options = parse([*words, "create", "web"])
    assert (options.systemd_cgroup, options.cgroup_manager) == (systemd, manager)


def test_an_unknown_cgroup_manager_is_refused() -> None:
    with pytest.raises(UsageError, match="cgroup-manager"):
        parse(["--cgroup-manager", "hand", "create", "web"])


@pytest.mark.parametrize("verb", ["create", "run"])
def test_the_configuration_is_where_it_is_said_to_be(verb: str) -> None:
    for words in (["--config", "x/y.json"], ["-f", "x/y.json"]):
        assert parse([verb, *words, "web"]).config == "x/y.json"
    assert parse([verb, "web"]).config is None
    with pytest.raises(MinirunError, match="--config and --rootfs exclude each other"):
        parse([verb, "--rootfs", "alpine", "--config", "x", "web"])
