"""Every option and verb of the command line, declared once; and the parser of the engine verbs.

`parse(argv)` gives an `Options`:

    options.verb                 "run"
    options.args                 ("web", "httpd", "-f"): the positionals, the container's ID first
    options.memory               "64m": the option's value by its name in snake_case
    options.given("memory")      whether it stood on the command line

A flag's value is a bool (False when absent); a number's an int (its default, else None); a list's
a tuple of strings, one per occurrence, never split on commas (() when absent); any other's the text
as it was typed (None when absent). Sizes, rates, port and volume texts are not looked into here:
whoever uses them reads them, and names the option in the error. The global options are attributes
as well: root, log, log_format, debug, systemd_cgroup, cgroup_manager, rootless.

The grammar is that of runc 1.5 (urfave/cli v3), which engines speak: `--name value`,
`--name=value`, one dash as good as two, options before or after the ID, except that `exec`, `ps`
and `kill` (and `run` and `create` with --rootfs) take everything after the ID as it is. From this
table also come the help texts and the click commands for completion.
"""

from __future__ import annotations

from minirun.errors import UsageError
from minirun.grammar import (
    FLAG,
    HELP,
    LIST,
    NUMBER,
    TEXT,
    Option,
    Options,
    Reader,
    Verb,
    read_verb,
)
from minirun.rootfsoptions import ROOTFS

__all__ = ["GLOBALS", "HUMAN", "ROOTFS", "VERBS", "Options", "parse"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

GLOBALS = (
    Option("debug", FLAG, "tell every step and system call in the log"),
    Option("log", TEXT, "append log messages to this file instead of stderr", "FILE"),
    Option(
        "log-format",
        TEXT,
        "format of the log",
        "text|json",
        default="text",
        choices=("text", "json"),
    ),
    Option("root", TEXT, "directory of the containers' state (should be on a tmpfs)", "DIR"),
    Option("criu", TEXT, "(ignored)", "PATH", hidden=True),
    Option(
        "systemd-cgroup", FLAG, 'let systemd make the cgroup; cgroupsPath is "slice:prefix:name"'
    ),
    Option(
        "cgroup-manager",
        TEXT,
        "who makes the cgroup; disabled: the container stays in the caller's",
        "cgroupfs|systemd|disabled",
        choices=("cgroupfs", "systemd", "disabled"),
    ),
    Option(
        "rootless",
        TEXT,
        "ignore what a user without cgroup permissions cannot do",
        "true|false|auto",
        default="auto",
    ),
    HELP,
    Option("version v", FLAG, "show the version"),
)

_CONSOLE = (
    Option(
        "console-socket", TEXT, "UNIX socket that is sent the master end of the terminal", "SOCKET"
    ),
    Option("pidfd-socket", TEXT, "UNIX socket that is sent a pidfd of the process", "SOCKET"),
    Option("pid-file", TEXT, "file to write the process's ID to", "FILE"),
)
_BUNDLE = Option("bundle b", TEXT, "the bundle's directory (default: the current directory)", "DIR")
_CONFIG = Option("config f", TEXT, "configuration in the bundle (default: config.json)", "FILE")
_PRESERVE_FDS = Option(
    "preserve-fds",
    NUMBER,
    "pass N more file descriptors on (stdio + $LISTEN_FDS + N in total)",
    "N",
    default=0,
)
_LAUNCH = (
    Option("no-pivot", FLAG, "do not use pivot_root, which fails on a ramdisk; less safe"),
    Option("no-new-keyring", FLAG, "keep the caller's session keyring"),
    _PRESERVE_FDS,
)
_DETACH = Option("detach d", FLAG, "do not wait for the process")
_SUBREAPER = Option("no-subreaper", FLAG, "do not adopt the container's orphans", hidden=True)
_EXPLAIN = Option("explain", FLAG, "tell each step, its system calls and its time on stderr")

_RUN_DETAILS = """\
Without --rootfs a bundle is run: a directory with config.json and a root filesystem, as in every
OCI runtime ("minirun spec" writes a config.json to start from). With --rootfs minirun writes the
bundle itself from the options below; what follows the ID is then the command to run."""

_REGEX = Option("regex r", FLAG, "the ID is a regular expression: do it to each that matches")

_ID = "<container-id>"
_ID_COMMAND = "<container-id> [command [argument...]]"
_OCI = "minirun.cli.lifecycle"

_CHECKPOINT = (
    Option("image-path", TEXT, "directory of the checkpoint's image files", "DIR"),
    Option("work-path", TEXT, "directory of work files and logs", "DIR"),
    Option("tcp-established", FLAG, "allow open TCP connections"),
    Option("ext-unix-sk", FLAG, "allow external UNIX sockets"),
    Option("shell-job", FLAG, "allow shell jobs"),
    Option("lazy-pages", FLAG, "use userfaultfd to restore memory lazily"),
    Option("file-locks", FLAG, "handle file locks"),
    Option("manage-cgroups-mode", TEXT, "cgroup mode: soft, full, strict or ignore", "MODE"),
    Option("empty-ns", LIST, "create a namespace, but do not restore what is in it", "NAMESPACE"),
    Option("auto-dedup", FLAG, "deduplicate memory images"),
)

_ALL = (
    Verb(
        "create",
        "create a container",
        _ID_COMMAND,
        f"{_OCI}:create",
        (_BUNDLE, _CONFIG, *_CONSOLE, *_LAUNCH, *ROOTFS),
        details=_RUN_DETAILS,
        most=None,
    ),
    Verb("start", "start the process of a created container", _ID, f"{_OCI}:start"),
    Verb(
        "run",
        "create a container and run it",
        _ID_COMMAND,
        f"{_OCI}:run",
        (
            _BUNDLE,
            _CONFIG,
            _DETACH,
            Option("keep", FLAG, "keep the container after its process has ended"),
            _SUBREAPER,
            *_CONSOLE,
            *_LAUNCH,
            _EXPLAIN,
            *ROOTFS,
        ),
        details=_RUN_DETAILS,
        most=None,
    ),
    Verb(
        "exec",
        "run another process in a container",
        "<container-id> <command> [argument...]\n--process FILE [options] <container-id>",
        "minirun.cli.exec:exec_",
        (
            *_CONSOLE,
            Option("cwd", TEXT, "directory to start in", "DIR"),
            Option("env e", LIST, "set a variable", "NAME=VALUE"),
            Option("tty t", FLAG, "give the process a terminal"),
            Option("user u", TEXT, "user, and group, to run as, as numbers", "UID[:GID]"),
            Option("additional-gids g", LIST, "add the process to a group", "GID"),
            Option("process p", TEXT, "read the process from this JSON file", "FILE"),
            _DETACH,
            Option("process-label", TEXT, "SELinux label of the process", "LABEL"),
            Option("apparmor", TEXT, "AppArmor profile of the process", "PROFILE"),
            Option("no-new-privs", FLAG, "set no_new_privs for the process"),
            Option("cap c", LIST, "add a capability to the process", "CAPABILITY"),
            _PRESERVE_FDS,
            Option("cgroup", LIST, "run in a sub-cgroup of the container's", "PATH"),
            Option("ignore-paused", FLAG, "allow it in a paused container"),
            _SUBREAPER,
        ),
        most=None,
        stop=True,
    ),
    Verb("state", "show a container's state as JSON", _ID, f"{_OCI}:state"),
    Verb(
        "kill",
        "send a signal to a container's process (default: SIGTERM)",
        "<container-id> [signal]",
        f"{_OCI}:kill",
        (Option("all a", FLAG, "send it to all processes of the container", hidden=True), _REGEX),
        most=2,
        stop=True,
    ),
    Verb(
        "delete",
        "remove what a stopped container holds",
        _ID,
        f"{_OCI}:delete",
        (
            Option("force f", FLAG, "kill the container if it runs; none of that name is no error"),
            _REGEX,
        ),
    ),
    Verb(
        "list",
        "list the containers",
        "",
        "minirun.cli.listing:list_",
        (
            Option(
                "format f",
                TEXT,
                "table or json",
                "FORMAT",
                default="table",
                choices=("table", "json"),
            ),
            Option("quiet q", FLAG, "show the IDs only"),
        ),
        least=0,
        most=0,
    ),
    Verb(
        "ps",
        "show the processes in a container",
        "<container-id> [ps options]",
        "minirun.cli.listing:ps",
        (
            Option(
                "format f",
                TEXT,
                "table or json (an array of process IDs)",
                "FORMAT",
                default="table",
                choices=("table", "json"),
            ),
        ),
        most=None,
        stop=True,
    ),
    Verb("pause", "freeze all processes in a container", _ID, f"{_OCI}:pause"),
    Verb("resume", "let a paused container go on", _ID, f"{_OCI}:resume"),
    Verb(
        "update",
        "change a container's limits",
        _ID,
        "minirun.cli.update:update",
        (
            Option(
                "resources r", TEXT, "read linux.resources from a JSON file, - for stdin", "FILE"
            ),
            Option("blkio-weight", NUMBER, "weight of the container's I/O, 10 to 1000", "WEIGHT"),
            Option("cpu-period", TEXT, "CPU period in microseconds; 0: the default", "US"),
            Option("cpu-quota", TEXT, "CPU time per period in microseconds", "US"),
            Option("cpu-burst", TEXT, "CPU time that may be saved for later, microseconds", "US"),
            Option("cpu-share", TEXT, "CPU shares, 2 to 262144", "SHARES"),
            Option("cpu-rt-period", TEXT, "real-time period in microseconds", "US"),
            Option("cpu-rt-runtime", TEXT, "real-time per period in microseconds", "US"),
            Option("cpuset-cpus", TEXT, "CPUs to run on, such as 0-2,7", "LIST"),
            Option("cpuset-mems", TEXT, "memory nodes to use", "LIST"),
            Option("kernel-memory", TEXT, "(ignored)", hidden=True),
            Option("kernel-memory-tcp", TEXT, "(ignored)", hidden=True),
            Option("memory", TEXT, "memory limit, such as 512m; -1: unlimited", "SIZE"),
            Option("cpu-idle", TEXT, "1: run only when nothing else wants the CPU", "0|1"),
            Option("memory-reservation", TEXT, "memory that is protected from reclaim", "SIZE"),
            Option("memory-swap", TEXT, "memory and swap together; -1: unlimited swap", "SIZE"),
            Option("pids-limit", NUMBER, "most processes and threads; -1: unlimited", "N"),
            Option("l3-cache-schema", TEXT, "Intel RDT cache schema", "SCHEMA"),
            Option("mem-bw-schema", TEXT, "Intel RDT memory bandwidth schema", "SCHEMA"),
        ),
    ),
    Verb(
        "spec",
        "write a config.json to start from",
        "",
        "minirun.cli.spec:spec",
        (
            Option("bundle b", TEXT, "directory to write to (default: the current one)", "DIR"),
            Option("rootless", FLAG, "for a user without privileges"),
        ),
        least=0,
        most=0,
    ),
    Verb(
        "events",
        "show a container's statistics and out-of-memory events",
        _ID,
        "minirun.cli.events:events",
        (
            Option("interval", TEXT, "time between two statistics", "DURATION", default="5s"),
            Option("stats", FLAG, "show the statistics once"),
        ),
    ),
    Verb(
        "features",
        "show what this runtime supports as JSON",
        "",
        "minirun.cli.features:features",
        least=0,
        most=0,
    ),
    Verb(
        "checkpoint",
        "checkpoint a running container",
        _ID,
        "minirun.cli.checkpoint:checkpoint",
        (
            *_CHECKPOINT,
            Option("parent-path", TEXT, "directory of the preceding pre-dump", "DIR"),
            Option("leave-running", FLAG, "leave the process running"),
            Option("tcp-skip-in-flight", FLAG, "skip TCP connections in flight"),
            Option("link-remap", FLAG, "remap unlinked files"),
            Option("status-fd", TEXT, "file descriptor to write \\0 to when lazy-pages is ready"),
            Option("page-server", TEXT, "address of a page server", "ADDRESS:PORT"),
            Option("pre-dump", FLAG, "dump memory only, and leave the container running"),
        ),
    ),
    Verb(
        "restore",
        "restore a container from a checkpoint",
        _ID,
        "minirun.cli.checkpoint:restore",
        (
            *_CHECKPOINT,
            *_CONSOLE,
            _BUNDLE,
            _DETACH,
            _SUBREAPER,
            Option("no-pivot", FLAG, "(ignored: CRIU changes the root in its own way)"),
            Option("lsm-profile", TEXT, "security profile to restore with", "TYPE:NAME"),
            Option("lsm-mount-context", TEXT, "mount context to restore with", "CONTEXT"),
        ),
    ),
)

VERBS = {verb.name: verb for verb in _ALL}

# The verbs for people: what they do, and where click finds them. They are loaded when called.
HUMAN = {
    "plan": ("print the steps that make a container, as a script too", "minirun.cli.plan:command"),
    "rootfs": (
        "pull, import, build, list and remove root filesystems",
        "minirun.cli.rootfs:rootfs",
    ),
    "virt": (
        "tell what this machine is, and which machines it can run",
        "minirun.cli.virt:command",
    ),
    "compare": (
        "measure a root filesystem as a container and as a virtual machine",
        "minirun.cli.compare:command",
    ),
    "network": ("list and clean up networks, addresses and ports", "minirun.cli.network:network"),
    "learn": ("run lessons and show pages about what minirun does", "minirun.cli.learn:command"),
    "completion": ("print the completion script of a shell", "minirun.cli.human:completion"),
}


def parse(argv: Sequence[str]) -> Options:
    """Read a command line without the program's name.

    `options.verb` is "" when there is none, else the verb's name as typed: one of VERBS, of HUMAN
    (whose arguments are left in `options.args`), or an unknown one. With `options.help` or
    `options.version` nothing else has been checked.

    Raises UsageError, with the attributes `options` (the global ones) and `verb` (a name of VERBS)
    when the error is in the verb's part; MinirunError for flags that do not go together.
    """
    reader = Reader(GLOBALS)
    rest = reader.read(list(argv), stop=lambda: True)
    manager = reader.values["cgroup_manager"]
    if manager is not None:  # crun's spelling, that podman uses too: the closer word wins
        reader.values["systemd_cgroup"] = manager == "systemd"
    name = rest[0] if rest else ""
    verb = VERBS.get(name)
    if verb is None or reader.values["help"]:
        return Options(name, reader.values, frozenset(reader.seen), tuple(rest[1:]))
    try:
        return read_verb(verb, reader.values, rest[1:])
    except UsageError as error:
        above = Options(name, reader.values, frozenset(reader.seen), ())
        error.verb, error.options = name, above  # type: ignore[attr-defined]
        raise
