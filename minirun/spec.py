"""config.json as immutable typed records (OCI runtime-spec 1.3.0: config.md, config-linux.md).

Field names are the specification's in snake_case. Parsing only: what types and ranges say. What the
fields must satisfy together is in `validate`.
"""

from __future__ import annotations

from minirun.record import (
    INT64,
    UINT32,
    UINT64,
    Record,
    anything,
    boolean,
    integer,
    integers,
    many,
    one,
    record_map,
    string,
    string_map,
    strings,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ID_MAX = UINT32 - 1  # 2**32-1 means "leave unchanged" to setresuid(2)
INT32 = (1 << 31) - 1


class Box(Record):
    height: int = integer(0, 0xFFFF, default=0)
    width: int = integer(0, 0xFFFF, default=0)


class User(Record):
    uid: int = integer(0, ID_MAX, default=0)
    gid: int = integer(0, ID_MAX, default=0)
    umask: int | None = integer(0, UINT32)
    additional_gids: tuple[int, ...] = integers(0, ID_MAX)
    username: str | None = string()


class Capabilities(Record):
    bounding: tuple[str, ...] = strings()
    effective: tuple[str, ...] = strings()
    inheritable: tuple[str, ...] = strings()
    permitted: tuple[str, ...] = strings()
    ambient: tuple[str, ...] = strings()


class Rlimit(Record):
    type: str = string(required=True)
    soft: int = integer(0, UINT64, required=True)
    hard: int = integer(0, UINT64, required=True)


class IOPriority(Record):
    cls: str = string("class", required=True)
    priority: int = integer(-INT32, INT32, default=0)


class Scheduler(Record):
    policy: str = string(required=True)
    nice: int = integer(-INT32, INT32, default=0)
    priority: int = integer(-INT32, INT32, default=0)
    flags: tuple[str, ...] = strings()
    runtime: int = integer(0, UINT64, default=0)
    deadline: int = integer(0, UINT64, default=0)
    period: int = integer(0, UINT64, default=0)


class ExecCPUAffinity(Record):
    initial: str | None = string()
    final: str | None = string()


class Process(Record):
    terminal: bool = boolean(default=False)
    console_size: Box | None = one(Box)
    user: User = one(User, default=User())
    args: tuple[str, ...] = strings()
    command_line: str | None = string()
    env: tuple[str, ...] = strings()
    cwd: str = string(default="")
    capabilities: Capabilities | None = one(Capabilities)
    rlimits: tuple[Rlimit, ...] = many(Rlimit)
    no_new_privileges: bool = boolean(default=False)
    apparmor_profile: str | None = string()
    oom_score_adj: int | None = integer(-INT32, INT32)
    selinux_label: str | None = string()
    io_priority: IOPriority | None = one(IOPriority, "ioPriority")
    scheduler: Scheduler | None = one(Scheduler)
    exec_cpu_affinity: ExecCPUAffinity | None = one(ExecCPUAffinity, "execCPUAffinity")


class Root(Record):
    path: str = string(required=True)
    readonly: bool = boolean(default=False)


class IDMapping(Record):
    container_id: int = integer(0, UINT32, "containerID", required=True)
    host_id: int = integer(0, UINT32, "hostID", required=True)
    size: int = integer(0, UINT32, required=True)


class Mount(Record):
    destination: str = string(required=True)
    type: str | None = string()
    source: str | None = string()
    options: tuple[str, ...] = strings()
    uid_mappings: tuple[IDMapping, ...] = many(IDMapping)
    gid_mappings: tuple[IDMapping, ...] = many(IDMapping)


class Hook(Record):
    path: str = string(required=True)
    args: tuple[str, ...] = strings()
    env: tuple[str, ...] | None = strings(default=None)
    timeout: int | None = integer(-INT32, INT32)


class Hooks(Record):
    prestart: tuple[Hook, ...] = many(Hook)
    create_runtime: tuple[Hook, ...] = many(Hook)
    create_container: tuple[Hook, ...] = many(Hook)
    start_container: tuple[Hook, ...] = many(Hook)
    poststart: tuple[Hook, ...] = many(Hook)
    poststop: tuple[Hook, ...] = many(Hook)


class Namespace(Record):
    type: str = string(required=True)
    path: str | None = string()


class TimeOffset(Record):
    secs: int = integer(-INT64, INT64, default=0)
    nanosecs: int = integer(0, UINT32, default=0)


class Device(Record):
    path: str = string(required=True)
    type: str = string(required=True)
    major: int = integer(-1, INT64, default=0)
    minor: int = integer(-1, INT64, default=0)
    file_mode: int | None = integer(0, UINT32)
    uid: int | None = integer(0, ID_MAX)
    gid: int | None = integer(0, ID_MAX)


class NetDevice(Record):
    name: str | None = string()


class DeviceRule(Record):
    """An entry of linux.resources.devices."""

    allow: bool = boolean(default=False)
    type: str | None = string()
    major: int | None = integer(-1, INT64)
    minor: int | None = integer(-1, INT64)
    access: str | None = string()


class Memory(Record):
    limit: int | None = integer(-1, INT64)
    reservation: int | None = integer(-1, INT64)
    swap: int | None = integer(-1, INT64)
    kernel: int | None = integer(-1, INT64)
    kernel_tcp: int | None = integer(-1, INT64, "kernelTCP")
    swappiness: int | None = integer(0, UINT64)
    disable_oom_killer: bool | None = boolean("disableOOMKiller")
    use_hierarchy: bool | None = boolean()
    check_before_update: bool = boolean(default=False)


class CPU(Record):
    shares: int | None = integer(0, UINT64)
    quota: int | None = integer(-INT64, INT64)
    burst: int | None = integer(0, UINT64)
    period: int | None = integer(0, UINT64)
    realtime_runtime: int | None = integer(-INT64, INT64)
    realtime_period: int | None = integer(0, UINT64)
    cpus: str | None = string()
    mems: str | None = string()
    idle: int | None = integer(-INT64, INT64)


class Pids(Record):
    limit: int | None = integer(-INT64, INT64)


class WeightDevice(Record):
    major: int = integer(0, INT64, required=True)
    minor: int = integer(0, INT64, required=True)
    weight: int | None = integer(0, 0xFFFF)
    leaf_weight: int | None = integer(0, 0xFFFF)


class ThrottleDevice(Record):
    """A rate in bytes or operations per second."""

    major: int = integer(0, INT64, required=True)
    minor: int = integer(0, INT64, required=True)
    rate: int = integer(0, UINT64, required=True)


class BlockIO(Record):
    weight: int | None = integer(0, 0xFFFF)
    leaf_weight: int | None = integer(0, 0xFFFF)
    weight_device: tuple[WeightDevice, ...] = many(WeightDevice)
    throttle_read_bps_device: tuple[ThrottleDevice, ...] = many(ThrottleDevice)
    throttle_write_bps_device: tuple[ThrottleDevice, ...] = many(ThrottleDevice)
    throttle_read_iops_device: tuple[ThrottleDevice, ...] = many(
        ThrottleDevice, "throttleReadIOPSDevice"
    )
    throttle_write_iops_device: tuple[ThrottleDevice, ...] = many(
        ThrottleDevice, "throttleWriteIOPSDevice"
    )


class HugepageLimit(Record):
    page_size: str = string(required=True)
    limit: int = integer(0, UINT64, required=True)


class InterfacePriority(Record):
    name: str = string(required=True)
    priority: int = integer(0, UINT32, required=True)


class Network(Record):
    class_id: int | None = integer(0, UINT32, "classID")
    priorities: tuple[InterfacePriority, ...] = many(InterfacePriority)


class Rdma(Record):
    hca_handles: int | None = integer(0, UINT32)
    hca_objects: int | None = integer(0, UINT32)


class Resources(Record):
    devices: tuple[DeviceRule, ...] = many(DeviceRule)
    memory: Memory | None = one(Memory)
    cpu: CPU | None = one(CPU)
    pids: Pids | None = one(Pids)
    block_io: BlockIO | None = one(BlockIO, "blockIO")
    hugepage_limits: tuple[HugepageLimit, ...] = many(HugepageLimit)
    network: Network | None = one(Network)
    rdma: dict[str, Rdma] = record_map(Rdma)
    unified: dict[str, str] = string_map()


class SeccompArg(Record):
    index: int = integer(0, UINT32, required=True)
    value: int = integer(0, UINT64, required=True)
    value_two: int = integer(0, UINT64, default=0)
    op: str = string(required=True)


class SeccompRule(Record):
    """An entry of linux.seccomp.syscalls."""

    names: tuple[str, ...] = strings()
    action: str = string(required=True)
    errno_ret: int | None = integer(0, UINT32)
    args: tuple[SeccompArg, ...] = many(SeccompArg)


class Seccomp(Record):
    default_action: str = string(required=True)
    default_errno_ret: int | None = integer(0, UINT32)
    architectures: tuple[str, ...] = strings()
    flags: tuple[str, ...] | None = strings(default=None)
    listener_path: str | None = string()
    listener_metadata: str | None = string()
    syscalls: tuple[SeccompRule, ...] = many(SeccompRule)

    @property
    def notifies(self) -> bool:
        """Whether a rule hands system calls to a listener."""
        return any(rule.action == "SCMP_ACT_NOTIFY" for rule in self.syscalls)


class IntelRdt(Record):
    clos_id: str | None = string("closID")
    schemata: tuple[str, ...] = strings()
    l3_cache_schema: str | None = string("l3CacheSchema")
    mem_bw_schema: str | None = string("memBwSchema")
    enable_monitoring: bool | None = boolean()


class Personality(Record):
    domain: str = string(required=True)
    flags: tuple[str, ...] = strings()


class MemoryPolicy(Record):
    mode: str = string(default="")  # none is refused where unknown ones are
    nodes: str | None = string()
    flags: tuple[str, ...] = strings()


class Linux(Record):
    namespaces: tuple[Namespace, ...] = many(Namespace)
    uid_mappings: tuple[IDMapping, ...] = many(IDMapping)
    gid_mappings: tuple[IDMapping, ...] = many(IDMapping)
    time_offsets: dict[str, TimeOffset] = record_map(TimeOffset)
    devices: tuple[Device, ...] = many(Device)
    net_devices: dict[str, NetDevice] = record_map(NetDevice)
    cgroups_path: str | None = string()
    resources: Resources | None = one(Resources)
    rootfs_propagation: str | None = string()
    seccomp: Seccomp | None = one(Seccomp)
    sysctl: dict[str, str] = string_map()
    masked_paths: tuple[str, ...] = strings()
    readonly_paths: tuple[str, ...] = strings()
    mount_label: str | None = string()
    intel_rdt: IntelRdt | None = one(IntelRdt)
    personality: Personality | None = one(Personality)
    memory_policy: MemoryPolicy | None = one(MemoryPolicy)


class Spec(Record):
    """A whole config.json."""

    oci_version: str = string(required=True)
    root: Root | None = one(Root)
    process: Process | None = one(Process)
    hostname: str | None = string()
    domainname: str | None = string()
    mounts: tuple[Mount, ...] = many(Mount)
    hooks: Hooks = one(Hooks, default=Hooks())
    linux: Linux = one(Linux, default=Linux())
    annotations: dict[str, str] = string_map()
    vm: Any = anything()
    solaris: Any = anything()
    windows: Any = anything()
    zos: Any = anything()
