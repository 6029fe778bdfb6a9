"""What `run` and `create` take to write a bundle themselves: the options that go with --rootfs."""

from __future__ import annotations

from minirun.grammar import FLAG, LIST, TEXT, RootfsOption

ROOTFS = (
    RootfsOption(
        "rootfs", TEXT, "root filesystem: a name from `rootfs list`, or a directory", "ROOT"
    ),
    RootfsOption("memory m", TEXT, "memory limit, such as 64m", "SIZE"),
    RootfsOption("memory-swap", TEXT, "limit of memory and swap together; -1: unlimited", "SIZE"),
    RootfsOption("memory-reservation", TEXT, "memory that is protected from reclaim", "SIZE"),
    RootfsOption("cpus", TEXT, "CPU time per second, such as 0.5", "NUMBER"),
    RootfsOption("cpu-weight", TEXT, "share of busy CPUs, 1 to 10000 (default 100)", "WEIGHT"),
    RootfsOption("cpu-shares c", TEXT, "the same as cgroup v1 counted it, 2 to 262144", "SHARES"),
    RootfsOption("cpuset-cpus", TEXT, "CPUs to run on, such as 0-2,7", "LIST"),
    RootfsOption("cpuset-mems", TEXT, "memory nodes to use", "LIST"),
    RootfsOption("pids-limit", TEXT, "most processes and threads; -1: unlimited", "N"),
    RootfsOption("device-read-bps", LIST, "read rate limit, such as /dev/sda:1mb", "DEVICE:RATE"),
    RootfsOption("device-write-bps", LIST, "write rate limit", "DEVICE:RATE"),
    RootfsOption("device-read-iops", LIST, "limit of reads per second", "DEVICE:RATE"),
    RootfsOption("device-write-iops", LIST, "limit of writes per second", "DEVICE:RATE"),
    RootfsOption("io-weight", TEXT, "share of a busy disk, 1 to 10000 (default 100)", "WEIGHT"),
    RootfsOption(
        "volume v", LIST, "bind a directory or file of the host", "SOURCE:TARGET[:OPTIONS]"
    ),
    RootfsOption("mount", LIST, "mount, such as type=bind,src=/a,dst=/b,ro", "KEY=VALUE,..."),
    RootfsOption("tmpfs", LIST, "mount an empty file system in memory", "TARGET[:OPTIONS]"),
    RootfsOption("read-only", FLAG, "make the root filesystem read-only"),
    RootfsOption(
        "env e", LIST, "set a variable; NAME alone takes the caller's value", "NAME[=VALUE]"
    ),
    RootfsOption("env-file", LIST, "read variables from a file", "FILE"),
    RootfsOption("workdir w", TEXT, "directory to start in", "DIR"),
    RootfsOption("user u", TEXT, "user, and group, to run as", "USER[:GROUP]"),
    RootfsOption("hostname", TEXT, "host name (default: the container's ID)", "NAME"),
    RootfsOption("cap-add", LIST, "allow a capability (gives up some isolation)", "CAPABILITY"),
    RootfsOption("cap-drop", LIST, "take a capability away, or ALL", "CAPABILITY"),
    RootfsOption(
        "security-opt",
        LIST,
        "seccomp=FILE|unconfined, no-new-privileges=true|false, apparmor=PROFILE, "
        "dangerous-volumes",
        "KEY=VALUE",
    ),
    RootfsOption("userns", TEXT, "user namespace: auto, host (gives up isolation)", "MODE"),
    RootfsOption("timens", TEXT, "time namespace: private, host (runc before 1.2)", "MODE"),
    RootfsOption(
        "network", TEXT, "none, bridge, bridge:NAME, ns:PATH, host (gives up isolation)", "MODE"
    ),
    RootfsOption("publish p", LIST, "publish a port", "[IP:]HOST:CONTAINER[/udp]"),
    RootfsOption("tty t", FLAG, "give the process a terminal"),
    RootfsOption("interactive i", FLAG, "keep stdin open"),
    RootfsOption("init", FLAG, "reap orphans and forward signals from process 1"),
    RootfsOption("rm", FLAG, "remove the container afterwards (`run` does so anyway)"),
    RootfsOption("dns", LIST, "name server", "ADDRESS"),
    RootfsOption("add-host", LIST, "add a line to /etc/hosts", "NAME:ADDRESS"),
    RootfsOption("ulimit", LIST, "resource limit, such as nofile=1024:2048", "TYPE=SOFT[:HARD]"),
    RootfsOption("sysctl", LIST, "kernel parameter of the container's namespaces", "NAME=VALUE"),
    RootfsOption("device", LIST, "give a device of the host", "PATH[:TARGET[:rwm]]"),
    RootfsOption("shm-size", TEXT, "size of /dev/shm (default 64m)", "SIZE"),
    RootfsOption("oom-score-adj", TEXT, "preference of the OOM killer, -1000 to 1000", "N"),
    RootfsOption("cgroup-parent", TEXT, "cgroup to make the container's in", "PATH"),
    RootfsOption("no-limits", FLAG, "set none of the default limits (gives up protection)"),
)
