"""What is run on both sides: shell scripts that say when something begins, ends, and its result.

Lines that begin with `@minirun` are for the one who measures: he takes the time when they arrive,
since clocks in a virtual machine may be wrong. Every workload has a result, which must be the same
on both sides: a program that is missing would otherwise win.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

MARK = "@minirun "
# Where the disk is, on either side; a machine that finds none sets the variable to nothing.
DISK, DISK_PLACE = "MINIRUN_COMPARE_DISK", "/minirun-compare-disk"

BOOT = 'echo "@minirun up"\n'
# It counts what it sees, and then sleeps; a forgotten one ends by itself.
INSPECT = """echo "@minirun up"
echo "@minirun fact kernel $(uname -sr)"
read -r boot </proc/sys/kernel/random/boot_id && echo "@minirun fact boot $boot"
mounts=0; while read -r line; do mounts=$((mounts + 1)); done </proc/self/mountinfo
echo "@minirun fact mounts $mounts"
processes=0; for one in /proc/[0-9]*; do processes=$((processes + 1)); done
echo "@minirun fact processes $processes"
nodes=0
for one in /dev/*; do if [ -c "$one" ] || [ -b "$one" ]; then nodes=$((nodes + 1)); fi; done
echo "@minirun fact nodes $nodes"
while read -r name value; do
    case $name in CapEff:) echo "@minirun fact capabilities $value" ;; esac
done </proc/self/status
echo "@minirun idle"
exec sleep 3600
"""


class Workload:
    """A piece of work: what it needs, what is prepared, timed, and said of its result.

    `$d` is an empty directory on a tmpfs, `$v` one on a disk, where it needs a `disk`; `$n` is the
    amount. `result` prints what must be the same on both sides; nothing where the work failed.
    """

    def __init__(
        self,
        name: str,
        title: str,
        tools: str,
        amount: tuple[int, int],
        script: tuple[str, str, str],
        *,
        disk: bool = False,
    ) -> None:
        self.name, self.title, self.tools = name, title, tools.split()
        self.amount = amount  # as a whole, and quickly
        self.prepare, self.body, self.result = script
        self.disk = disk

    def describe(self, *, quick: bool) -> str:
        """Give its title with the amount in it."""
        return self.title.replace("N", str(self.amount[quick]), 1)


_INPUT = 'dd if=/dev/zero of="$d/in" bs=1048576 count="$n" 2>/dev/null'
_DIGEST = 'sha256sum <"$d/out"'
# So many bytes that are the same on both sides and hardly compress: the shell's own, repeated.
_SEED = (
    'cat /bin/sh >"$d/in"; while [ $(wc -c <"$d/in") -lt $((n * 1048576)) ]; do '
    'cat "$d/in" "$d/in" >"$d/more"; mv "$d/more" "$d/in"; done'
)
_WRITE = 'dd if="$d/in" of="$v/out" bs=1048576 count="$n" conv=fsync 2>/dev/null'


def _whole(path: str) -> str:
    """Give the checksum of a file that has its `$n` MiB."""
    return f'[ $(wc -c <"{path}") -eq $((n * 1048576)) ] && sha256sum <"{path}"'


WORKLOADS = (
    Workload(
        "hash",
        "SHA-256 of N MiB",
        "dd sha256sum",
        (16, 4),
        (_INPUT, 'sha256sum <"$d/in" >"$d/out"', 'cat "$d/out"'),
    ),
    Workload(
        "shell",
        "N rounds of arithmetic in the shell",
        "",
        (40000, 10000),
        (
            ":",
            "i=0; r=1; while [ $i -lt $n ]; do r=$(((r * 31 + i) % 65521)); i=$((i + 1)); done",
            "echo $r",
        ),
    ),
    Workload(
        "syscall",
        "N times read and write of one byte",
        "dd sha256sum",
        (100000, 30000),
        (":", 'dd if=/dev/zero of="$d/out" bs=1 count="$n" 2>/dev/null', _DIGEST),
    ),
    Workload(
        "fork",
        "N times fork, execve, exit and wait",
        "expr",
        (400, 100),
        (
            "expr=$(command -v expr)",
            'i=0; r=0; while [ $i -lt $n ]; do r=$("$expr" $r + $i); i=$((i + 1)); done',
            "echo $r",
        ),
    ),
    Workload(
        "touch",
        "N MiB of memory touched for the first time, and copied",
        "dd tail sha256sum",
        (24, 12),
        (
            ":",
            'dd if=/dev/zero of="$d/out" bs=$((n * 1048576)) count=1 2>/dev/null',
            'tail -c 65536 "$d/out" | sha256sum; wc -c <"$d/out"',
        ),
    ),
    Workload(
        "files",
        "N files made, read and removed (tmpfs)",
        "cat rm sha256sum",
        (2000, 500),
        (
            ":",
            'i=0; while [ $i -lt $n ]; do echo $i >"$d/f$i"; i=$((i + 1)); done; '
            'cat "$d"/f* >"$d/out"; rm "$d"/f*',
            _DIGEST,
        ),
    ),
    Workload(
        "copy",
        "N MiB copied from file to file by 4 KiB (tmpfs)",
        "dd sha256sum",
        (24, 8),
        (
            _INPUT,
            'dd if="$d/in" of="$d/out" bs=4096 2>/dev/null',
            'tail -c 65536 "$d/out" | sha256sum; wc -c <"$d/out"',
        ),
    ),
    Workload(
        "write",
        "N MiB written to a file, and fsync (disk)",
        "cat dd mv sha256sum wc",
        (16, 4),
        (_SEED, _WRITE, _whole("$v/out")),
        disk=True,
    ),
    Workload(
        "read",
        "N MiB read back past the page cache (disk)",
        "cat dd mv sha256sum wc",
        (16, 4),
        (
            f"{_SEED}; {_WRITE}",
            'dd if="$v/out" of="$d/back" bs=1048576 iflag=direct 2>/dev/null',
            _whole("$d/back"),
        ),
        disk=True,
    ),
    Workload(
        "sync",
        "N processes that write 4 KiB each, and fsync (disk)",
        "dd sha256sum wc",
        (100, 20),
        (
            'dd if=/dev/zero of="$v/out" bs=1048576 count=4 conv=fsync 2>/dev/null; '
            'dd if=/bin/sh of="$d/block" bs=4096 count=1 2>/dev/null',
            "i=0; r=1; while [ $i -lt $n ]; do r=$(((r * 31 + 7) % 1021)); "
            'dd if="$d/block" of="$v/out" bs=4096 seek=$r conv=notrunc,fsync 2>/dev/null; '
            "i=$((i + 1)); done",
            'sha256sum <"$v/out"',
        ),
        disk=True,
    ),
)


def work(rounds: int, names: Collection[str], *, quick: bool) -> str:
    """Return the script that does the workloads of these names, all of them `rounds` times."""
    lines = [
        'echo "@minirun up"',
        "d=/dev/shm/compare; mkdir -p $d",
        f'v=${{{DISK}-{DISK_PLACE}}}; [ -z "$v" ] || mkdir -p "$v"',
        f"round=0; while [ $round -lt {rounds} ]; do",
    ]
    for one in WORKLOADS:
        if one.name in names:
            lines += _one(one, one.amount[quick])
    return "\n".join([*lines, "round=$((round + 1)); done", 'echo "@minirun done"', ""])


def _one(one: Workload, amount: int) -> list[str]:
    needs = [
        f'command -v {tool} >/dev/null || lacks="{tool}"' for tool in one.tools
    ]  # as dash has it: one name each
    return [
        "lacks=",
        *needs,
        *([f'[ -n "$v" ] || lacks="{DISK}"'] if one.disk else ()),
        f'if [ -n "$lacks" ]; then echo "@minirun lacks {one.name} $lacks"; else',
        f"n={amount}; {one.prepare}",
        f'echo "@minirun begin {one.name}"',
        one.body,
        f'echo "@minirun end {one.name}"',
        f'echo "@minirun result {one.name}" $({one.result})',
        'rm -f "$d"/* "${v:-$d}"/*; fi',
    ]
