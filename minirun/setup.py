"""The set-up record: what the steps of one create, run or exec share.

One record per process tree: the child has a copy since its birth, so what a later step of the
parent sets is not seen there. Descriptors in it are O_CLOEXEC and end with the processes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from minirun.channel import Channel
    from minirun.spec import Process, Spec
    from minirun.state import Container
    from minirun.step import Event


class Launch:
    """How create, run or exec was asked for: the flags that are not in config.json.

    The descriptors from 3 on that are kept for the payload are `listen_fds`, those of socket
    activation (sd_listen_fds(3)), and `preserve_fds` after them. The socket and file arguments
    are paths, absolute or relative to the caller's working directory.
    """

    def __init__(
        self,
        bundle: str = ".",
        *,
        config: str = "config.json",
        console_socket: str | None = None,
        pid_file: str | None = None,
        pidfd_socket: str | None = None,
        no_pivot: bool = False,
        no_new_keyring: bool = False,
        preserve_fds: int = 0,
        listen_fds: int = 0,
        detach: bool = False,
        cgroup: str | None = None,
        ignore_paused: bool = False,
        systemd_cgroup: bool = False,
        no_cgroup: bool = False,
        rootless: bool = False,
    ) -> None:
        self.bundle = bundle
        self.config = config  # relative to the bundle, as crun has it
        self.console_socket = console_socket
        self.pid_file = pid_file
        self.pidfd_socket = pidfd_socket
        self.no_pivot = no_pivot
        self.no_new_keyring = no_new_keyring
        self.preserve_fds = preserve_fds
        self.listen_fds = listen_fds
        self.detach = detach
        self.cgroup = cgroup
        self.ignore_paused = ignore_paused
        self.systemd_cgroup = systemd_cgroup
        self.no_cgroup = no_cgroup  # the container stays in the caller's
        self.rootless = rootless  # cgroup permissions are a user's, who may have none
        self.sources: dict[str, tuple[int, int]] = {}  # what binds must be: path, device and inode
        self.silent = False  # standard streams: /dev/null instead of the caller's, but for files
        self.notes: list[str] = []  # what run has to say in the end

    @property
    def passed_fds(self) -> range:
        """The descriptors beyond the standard streams that the payload gets."""
        return range(3, 3 + self.listen_fds + self.preserve_fds)


class Setup:
    """See the module. Attributes are set by the step that is named beside them."""

    unprivileged = False  # making: not root of the host; the container is a user's
    own_mounts = True  # making: its mount namespace is not the host's
    helping = helper = -1  # mounts.offer_help: the parent's and the child's socket
    # capabilities.drop, where CAP_SYS_ADMIN is kept for the filter: what the program has of its
    # own, what is inheritable, and whether the ambient one is to go
    last_caps: tuple[int, int, bool] | None = None

    def __init__(self, cid: str, spec: Spec, process: Process, bundle: str, launch: Launch) -> None:
        self.cid = cid
        self.spec = spec
        self.process = process
        self.bundle = bundle
        self.launch = launch
        self.events: list[Event] | None = None  # a list: record what each step did
        self.tell: Callable[[dict[str, Any]], None] | None = None  # parent, --debug: of each event
        self.remote_events: list[Any] = []  # parent: those of the child, as JSON objects
        self.notes: list[str] = []  # sentences for the person at the terminal
        self.current = ""  # the step being taken, for errors
        self.undo: list[Callable[[], None]] = []  # what the parent's steps made, newest last

        self.root_path = ""  # absolute path of the root filesystem on the host
        self.executable = ""  # path of the minirun command, for hooks

        self.channel: Channel | None = None  # parent: to the child; child: to the parent
        self.pid = 0  # parent: the container's process
        self.pidfd = -1
        self.outer_pid = 0  # parent: the process that joins and unshares, if it is another
        self.container: Container | None = None  # parent: the state directory

        self.namespaces: dict[str, int] = {}  # namespaces.open_paths: type → descriptor to join
        self.sources: dict[int, int] = {}  # mounts.open_sources: index in spec.mounts → mount
        self.inner_sources: dict[int, str] = {}  # the same: paths in the root, opened at their turn
        self.links: dict[int, str] = {}  # the same for symbolic links: where they lead
        self.to_lock: list[int] = []  # mounts.mount_all: mounts that become read-only later
        self.device_sources: dict[str, int] = {}  # devices.open_nodes: path → mount of a node
        self.null_source = -1  # mounts.open_sources: a mount of the host's /dev/null
        self.group: Any = None  # cgroups.create or start_scope: the container's group or None
        self.group_fd: int | None = None
        self.scope: Any = None  # cgroups.create: the systemd unit, with --systemd-cgroup
        self.exec_group: Any = None  # exec: keeps that descriptor open
        self.filter: Any = None  # syscallfilter.compile_filter
        self.agent = -1  # syscallfilter.connect_agent: the socket to the seccomp agent
        self.last_cap = 63  # highest capability of the kernel: capabilities.look
        # plain_lines: terminal leaves \n as it is; in_cwd: program has entered the directory;
        # let_go: the word of start has come to sync.await_start
        self.setgroups_denied = self.in_cwd = self.plain_lines = self.let_go = False
        self.console: int = -1  # terminal: descriptor of the socket that gets the pty's master
        self.console_size: tuple[int, int] | None = None
        self.pidfd_socket = -1  # outside.connect_pidfd_socket
        self.netns = -1  # netdevices.move: the container's network namespace
        self.fifo = -1  # state.make_fifos: the child waits on it for `start`
        self.result = -1  # the child tells `start` of a failure on it

        self.target_pid, self.target_pidfd = 0, -1  # exec: the container's process
        self.join_flags = 0  # exec: CLONE_NEW* of the namespaces to join

        self.rootfd = self.procfd = -1  # mounts.bind_root: the container's; procfs.open_private
        self.kernel_mounts: dict[str, int] = {}  # mounts.mount_all: those on /proc and /sys
        self.terminal_fd = -1  # terminal.open: the pty's slave
        self.core_limit = (0, 0)  # child.protect: what RLIMIT_CORE was, for the payload
        # labels: whether the kernel enforces SELinux; a procfs to set the payload's label through
        self.selinux, self.labelfd = False, -1
        self.program = b""  # program.resolve: what is executed
        self.obstacle = ("", "")  # program.resolve: what would keep execve from it, and what helps
        self.environment: list[bytes] = []  # program.prepare_environment
        self.image = -1  # payload.prepare: the trampoline

    def descriptors(self) -> list[int]:
        """The descriptors that the child needs; all others are the runtime's or its caller's."""
        assert self.channel is not None
        return [
            0,
            1,
            2,
            *self.launch.passed_fds,
            self.channel.reader,
            self.channel.writer,
            self.fifo,
            self.result,
            self.console,
            self.null_source,
            self.helper,
            self.rootfd,
            self.target_pidfd,
            *self.namespaces.values(),
            *self.sources.values(),
            *self.device_sources.values(),
        ]

    def waiting_descriptors(self) -> list[int]:
        """Those that it still needs while it waits for `start`.

        The channel's end tells the parent, by ending, that it is the interpreter no more.
        """
        assert self.channel is not None
        return [
            self.channel.writer,
            0,
            1,
            2,
            *self.launch.passed_fds,
            self.waiting_on,
            self.report_to,
            self.labelfd,
            self.image,
        ]

    @property
    def waiting_on(self) -> int:
        """The descriptor on which the word to start comes: the FIFO of create, else the channel."""
        assert self.channel is not None
        return self.fifo if self.fifo >= 0 else self.channel.reader

    @property
    def report_to(self) -> int:
        """The descriptor to which the last process tells a failure."""
        assert self.channel is not None
        return self.result if self.result >= 0 else self.channel.writer

    @property
    def new_namespaces(self) -> set[str]:
        """Types of the namespaces that are made, not joined."""
        return {entry.type for entry in self.spec.linux.namespaces if not entry.path}

    @property
    def new_user_namespace(self) -> bool:
        """Whether the container gets a user namespace of its own."""
        return "user" in self.new_namespaces

    @property
    def direct(self) -> bool:
        """Whether one process makes the namespaces and is the container's first.

        It is born in the pid namespace, and in the user namespace that owns it. Another has to go
        before it where it must be born in what is joined, or in a time namespace (of which clone3
        knows since Linux 5.19 only, and whose offsets are written before a process is in it).
        """
        new = self.new_namespaces
        joined = {entry.type for entry in self.spec.linux.namespaces if entry.path}
        if "pid" not in new or "time" in new:
            return False
        return not joined if "user" in new else "user" not in joined

    def needs_private(self, kind: str) -> bool:
        """Whether the container has a namespace of this type that is not the host's by omission."""
        return any(entry.type == kind for entry in self.spec.linux.namespaces)
