"""linux.resources as writes: values, order, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirun.cgroups.iolimits import io_weight
from minirun.cgroups.resources import (
    Write,
    check_usage,
    controllers,
    cpu_weight,
    ignored,
    merge,
    needed,
    writes,
)
from minirun.cgroups.undo import undo_value
from minirun.errors import ConfigError, MinirunError, Unsupported
from minirun.spec import Resources


def resources(**values: Any) -> Resources:
    return Resources.decode(values)


def shown(*args: Any) -> list[tuple[str, str]]:
    return [(write.file, write.value) for write in writes(*args)]


def plan(**values: Any) -> list[tuple[str, str]]:
    return shown(resources(**values))


MIB = 1 << 20


def test_nothing_asked_nothing_written() -> None:
    assert writes(None) == []
    assert plan() == []
    assert plan(devices=[{"allow": False, "access": "rwm"}]) == []
    assert not needed(None)
    assert not needed(resources(devices=[{"allow": False}]))


@pytest.mark.parametrize(
    ("shares", "weight"),
    [(0, 0), (1, 1), (2, 1), (3, 2), (102, 17), (512, 59), (1024, 100), (2048, 174),
     (262143, 10000), (262144, 10000), (1 << 40, 10000)],
)  # fmt: skip
def test_shares_to_weight(shares: int, weight: int) -> None:
    assert cpu_weight(shares) == weight


@given(st.integers(2, 262144), st.integers(2, 262144))
def test_more_shares_never_weigh_less(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert 1 <= cpu_weight(low) <= cpu_weight(high) <= 10000


def test_blkio_weight_to_io_weight() -> None:
    assert [io_weight(weight) for weight in (10, 100, 500, 1000)] == [1, 910, 4950, 10000]


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ({"limit": 64 * MIB}, [("memory.max", "67108864")]),
        ({"limit": 0}, []),
        ({"limit": -1}, [("memory.swap.max", "max"), ("memory.max", "max")]),
        ({"limit": -1, "swap": MIB}, [("memory.swap.max", "1048576"), ("memory.max", "max")]),
        ({"limit": MIB, "swap": MIB}, [("memory.swap.max", "0"), ("memory.max", "1048576")]),
        ({"limit": MIB, "swap": 3 * MIB},
         [("memory.swap.max", "2097152"), ("memory.max", "1048576")]),
        ({"limit": MIB, "swap": -1}, [("memory.swap.max", "max"), ("memory.max", "1048576")]),
        ({"limit": MIB, "swap": 0}, [("memory.max", "1048576")]),
        ({"swap": -1}, [("memory.swap.max", "max")]),
        ({"reservation": MIB}, [("memory.low", "1048576")]),
        ({"reservation": -1}, [("memory.low", "max")]),
        ({"kernel": 5, "kernelTCP": 5, "swappiness": 5, "disableOOMKiller": True}, []),
    ],
)  # fmt: skip
def test_memory(memory: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert plan(memory=memory) == expected


@pytest.mark.parametrize("memory", [{"swap": MIB}, {"limit": 2 * MIB, "swap": MIB}])
def test_swap_that_contradicts_the_limit(memory: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"linux\.resources\.memory\.swap"):
        plan(memory=memory)


def test_memory_grows_before_it_shrinks() -> None:
    """Lowering the limit needs the swap first, lowering the swap needs the memory first."""
    now = {"memory.max": f"{8 * MIB}\n", "memory.swap.max": f"{2 * MIB}\n"}
    more_swap = resources(memory={"limit": 4 * MIB, "swap": 10 * MIB})
    assert [file for file, _ in shown(more_swap, None, now)] == ["memory.swap.max", "memory.max"]
    more_memory = resources(memory={"limit": 16 * MIB, "swap": 17 * MIB})
    assert [file for file, _ in shown(more_memory, None, now)] == ["memory.max", "memory.swap.max"]


def test_a_change_of_one_half_keeps_the_sum_that_was_asked_for() -> None:
    stored = resources(memory={"limit": 4 * MIB, "swap": 6 * MIB})
    now = {"memory.max": str(4 * MIB), "memory.swap.max": str(2 * MIB)}
    grow = resources(memory={"limit": 5 * MIB})
    assert shown(grow, stored, now) == [
        ("memory.max", str(5 * MIB)), ("memory.swap.max", str(MIB))
    ]  # fmt: skip
    swap = resources(memory={"swap": 5 * MIB})
    assert shown(swap, stored, now) == [("memory.swap.max", str(MIB))]
    assert shown(swap, None, now) == [("memory.swap.max", str(MIB))]
    assert shown(swap, None, {"memory.max": "max"}) == [("memory.swap.max", str(5 * MIB))]
    with pytest.raises(ConfigError, match="less than"):
        shown(resources(memory={"limit": 7 * MIB}), stored, now)


def test_check_before_update() -> None:
    memory = resources(memory={"limit": MIB, "swap": 3 * MIB, "checkBeforeUpdate": True}).memory
    check_usage(memory, MIB - 1)
    with pytest.raises(ConfigError, match="rejecting"):
        check_usage(memory, MIB)
    check_usage(resources(memory={"limit": MIB}).memory, 2 * MIB)
    check_usage(resources(memory={"limit": -1, "checkBeforeUpdate": True}).memory, 2 * MIB)


@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ({"shares": 1024}, [("cpu.weight", "100")]),
        ({"shares": 0}, []),
        ({"quota": 50000, "period": 100000}, [("cpu.max", "50000 100000")]),
        ({"quota": 50000}, [("cpu.max", "50000 100000")]),
        ({"period": 50000}, [("cpu.max", "max 50000")]),
        ({"quota": -1}, [("cpu.max", "max 100000")]),
        ({"quota": 0, "period": 0}, []),
        ({"burst": 0}, [("cpu.max.burst", "0")]),
        ({"quota": 5000, "burst": 4000}, [("cpu.max", "5000 100000"), ("cpu.max.burst", "4000")]),
        ({"idle": 1}, [("cpu.idle", "1")]),
        ({"idle": 1, "shares": 512}, [("cpu.idle", "1")]),
        ({"idle": 0, "shares": 512}, [("cpu.idle", "0"), ("cpu.weight", "59")]),
        ({"cpus": "0-1", "mems": "0"}, [("cpuset.cpus", "0-1"), ("cpuset.mems", "0")]),
        ({"cpus": "", "mems": ""}, []),
    ],
)
def test_cpu(cpu: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert plan(cpu=cpu) == expected


def test_a_change_of_quota_or_period_keeps_the_other() -> None:
    now = {"cpu.max": "20000 50000\n", "cpu.max.burst": "0\n"}
    assert shown(resources(cpu={"quota": 30000}), None, now) == [("cpu.max", "30000 50000")]
    assert shown(resources(cpu={"period": 90000}), None, now) == [("cpu.max", "20000 90000")]


def test_a_group_that_is_no_longer_idle_gets_its_weight_back() -> None:
    before = resources(cpu={"shares": 512})
    idle = merge(before, resources(cpu={"idle": 1}))
    back = [("cpu.idle", "0"), ("cpu.weight", "59")]
    assert shown(resources(cpu={"idle": 1}), before, {}) == [("cpu.idle", "1")]
    assert shown(resources(cpu={"idle": 0}), idle, {}) == back
    # The kernel refuses a weight meanwhile: it is kept for later.
    assert shown(resources(cpu={"shares": 512}), resources(cpu={"idle": 1}), {}) == []
    later = merge(resources(cpu={"idle": 1}), resources(cpu={"shares": 512}))
    assert shown(resources(cpu={"idle": 0}), later, {}) == back


def test_burst_never_exceeds_the_quota_on_the_way() -> None:
    now = {"cpu.max": "50000 100000", "cpu.max.burst": "40000"}
    down = resources(cpu={"quota": 20000, "burst": 10000})
    assert [file for file, _ in shown(down, None, now)] == ["cpu.max.burst", "cpu.max"]
    up = resources(cpu={"quota": 90000, "burst": 80000})
    assert [file for file, _ in shown(up, None, now)] == ["cpu.max", "cpu.max.burst"]


@pytest.mark.parametrize(
    "cpu",
    [{"quota": 5000, "burst": 6000}, {"idle": 2}, {"cpus": "0\n1"}, {"mems": "zero"}, {"idle": -1}],
)
def test_cpu_that_is_refused(cpu: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        plan(cpu=cpu)


@pytest.mark.parametrize(
    ("limit", "expected"), [(64, "64"), (1, "1"), (0, "1"), (-1, "max"), (-7, "max")]
)
def test_pids(limit: int, expected: str) -> None:
    assert plan(pids={"limit": limit}) == [("pids.max", expected)]


def test_block_io() -> None:
    planned = writes(
        resources(
            blockIO={
                "weight": 500,
                "weightDevice": [{"major": 8, "minor": 0, "weight": 100}],
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1048576}],
                "throttleWriteBpsDevice": [{"major": 8, "minor": 16, "rate": 0}],
                "throttleReadIOPSDevice": [{"major": 8, "minor": 16, "rate": 7}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 120}],
            }
        )
    )
    assert [(write.file, write.value) for write in planned] == [
        ("io.bfq.weight", "500"),
        ("io.bfq.weight", "8:0 100"),
        ("io.max", "8:0 rbps=1048576 wiops=120"),
        ("io.max", "8:16 wbps=max riops=7"),
    ]
    assert [str(write.fallback) for write in planned[:2]] == [
        "io.weight = 4950", "io.weight = 8:0 910"
    ]  # fmt: skip
    assert controllers(planned) == ("io",)
    with pytest.raises(ConfigError, match="weight"):
        plan(blockIO={"weight": 9})


def test_hugetlb_and_rdma() -> None:
    huge = writes(resources(hugepageLimits=[{"pageSize": "2MB", "limit": 0}]))
    assert [str(write) for write in huge] == ["hugetlb.2MB.max = 0", "hugetlb.2MB.rsvd.max = 0"]
    assert [write.optional for write in huge] == [False, True]
    assert plan(rdma={"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10}, "rxe": {"hcaObjects": 0}}) == [
        ("rdma.max", "mlx5_1 hca_handle=3 hca_object=10"),
        ("rdma.max", "rxe hca_object=0"),
    ]


@pytest.mark.parametrize("size", ["2MB/../../x", "", "MB", "2mb", "٢MB", "2MB\n", "-2MB", "2.MB"])
def test_page_sizes_that_are_refused(size: str) -> None:
    with pytest.raises(ConfigError, match="pageSize"):
        plan(hugepageLimits=[{"pageSize": size, "limit": 1}])


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "a\tb"])
def test_rdma_devices_that_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="rdma"):
        plan(rdma={name: {"hcaHandles": 1}})


def test_unified_files_are_written_line_by_line() -> None:
    given = {"memory.high": "1000", "io.max": "8:0 rbps=1\n8:16 rbps=2", "cpuset.cpus": ""}
    planned = writes(resources(unified=given))
    assert [(write.file, write.value) for write in planned] == [
        ("memory.high", "1000"),
        ("io.max", "8:0 rbps=1"),
        ("io.max", "8:16 rbps=2"),
        ("cpuset.cpus", ""),
    ]
    assert controllers(planned) == ("cpuset", "io", "memory")
    free = {"cgroup.max.depth": "3", "memory.pressure": "some 150000 1000000"}
    assert controllers(writes(resources(unified=free))) == ()


@pytest.mark.parametrize(
    "key",
    ["../cgroup.procs", "a/b", ".", "..", "", "memory.max\n", "memory", "memory.", ".max", "a..b",
     "cgroup.kill", "cgroup.subtree_control", "cgroup.procs", "cgroup.freeze", "mémory.max"],
)  # fmt: skip
def test_unified_keys_that_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=r"linux\.resources\.unified"):
        plan(unified={key: "1"})


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"cpu": {"realtimeRuntime": 1}}, "cpu.realtimeRuntime"),
        ({"cpu": {"realtimePeriod": 1}}, "cpu.realtimePeriod"),
        ({"network": {"classID": 1}}, "network.classID"),
        ({"network": {"priorities": [{"name": "lo", "priority": 1}]}}, "network.priorities"),
    ],
)
def test_what_version_two_cannot_do_is_refused_by_name(values: dict[str, Any], name: str) -> None:
    with pytest.raises(Unsupported, match=name):
        writes(resources(**values))


def test_what_version_two_ignores_is_named() -> None:
    memory = {"swappiness": 0, "kernel": -1, "useHierarchy": False}
    given = resources(memory=memory, blockIO={"leafWeight": 10})
    assert set(ignored(given)) == {
        "linux.resources.memory.kernel",
        "linux.resources.memory.swappiness",
        "linux.resources.memory.useHierarchy",
        "linux.resources.blockIO.leafWeight",
    }
    assert ignored(resources(memory={"useHierarchy": True})) == []  # it always is
    assert ignored(resources(memory={"limit": 1})) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"pids": {"limit": -1}}, False),
        ({"memory": {"limit": -1}}, False),
        ({"cpu": {"quota": -1}}, False),
        ({"pids": {"limit": 1}}, True),
        ({"memory": {"limit": 1, "swap": 1}}, True),
        ({"unified": {"memory.high": "1"}}, True),
    ],
)
def test_no_limit_needs_no_cgroup(values: dict[str, Any], expected: bool) -> None:
    assert needed(resources(**values)) is expected


def test_merge_lays_fields_over_fields() -> None:
    stored = resources(memory={"limit": 1, "swap": 2}, pids={"limit": 3}, unified={"a.b": "1"})
    changes = resources(memory={"limit": 5}, cpu={"shares": 4}, unified={"c.d": "2"})
    assert merge(stored, changes).encode() == {
        "memory": {"limit": 5, "swap": 2},
        "pids": {"limit": 3},
        "unified": {"a.b": "1", "c.d": "2"},
        "cpu": {"shares": 4},
    }
    assert merge(None, changes) is changes
    assert merge(stored, resources()).encode() == stored.encode()


@pytest.mark.parametrize(
    ("file", "value", "before", "expected"),
    [
        ("pids.max", "5", "max\n", "max"),
        ("cpu.max", "1000 100000", "max 100000\n", "max 100000"),
        ("io.max", "8:0 rbps=1", "8:0 rbps=max wbps=9 riops=max wiops=max\n8:16 rbps=2\n",
         "8:0 rbps=max wbps=9 riops=max wiops=max"),
        ("io.max", "8:0 rbps=1", "8:16 rbps=2\n", "8:0 rbps=max wbps=max riops=max wiops=max"),
        ("io.weight", "200", "default 100\n8:0 50\n", "default 100"),
        ("io.weight", "8:0 200", "default 100\n", "8:0 default"),
        ("rdma.max", "a hca_handle=1", "", "a hca_handle=max hca_object=max"),
        ("memory.high", "1", None, None),
    ],
)  # fmt: skip
def test_undo(file: str, value: str, before: str | None, expected: str | None) -> None:
    assert undo_value(Write(file=file, value=value), before) == expected


@given(
    st.dictionaries(
        st.sampled_from(["limit", "swap", "reservation"]), st.integers(-1, 1 << 62), max_size=3
    )
)
def test_any_memory_gives_numbers_or_a_refusal(memory: dict[str, int]) -> None:
    try:
        planned = plan(memory=memory)
    except MinirunError:
        return
    assert all(value == "max" or int(value) >= 0 for _, value in planned)
