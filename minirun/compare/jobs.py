"""What is run on both sides: shell scripts that say when something begins, ends, and its result.

Lines that begin with `@minirun` are for the one who measures: he takes the time when they arrive,
since clocks in a virtual machine may be wrong. Every workload has a result, which must be the same
on both sides: a program that is missing would otherwise win.
"""

from __future__ import annotations

MARK = "@minirun "

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

    `$d` is an empty directory on a tmpfs, `$n` the amount. `result` prints one word.
    """

    def __init__(
        self,
        name: str,
        title: str,
        tools: str,
        amount: tuple[int, int],
        script: tuple[str, str, str],
    ) -> None:
        self.name, self.title, self.tools = name, title, tools.split()
        self.amount = amount  # as a whole, and quickly
        self.prepare, self.body, self.result = script

    def describe(self, *, quick: bool) -> str:
        """Give its title with the amount in it."""
        return self.title.replace("N", str(self.amount[quick]), 1)


_INPUT = 'dd if=/dev/zero of="$d/in" bs=1048576 count="$n" 2>/dev/null'
_DIGEST = 'sha256sum <"$d/out"'

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
)


def work(rounds: int, *, quick: bool) -> str:
    """Return the script that does every workload `rounds` times."""
    lines = [
        'echo "@minirun up"',
        "d=/dev/shm/compare; mkdir -p $d",
        f"round=0; while [ $round -lt {rounds} ]; do",
    ]
    for one in WORKLOADS:
        lines += _one(one, one.amount[quick])
    return "\n".join([*lines, "round=$((round + 1)); done", 'echo "@minirun done"', ""])


def _one(one: Workload, amount: int) -> list[str]:
    needs = [
        f'command -v {tool} >/dev/null || lacks="{tool}"' for tool in one.tools
    ]  # as dash has it: one name each
    return [
        "lacks=",
        *needs,
        f'if [ -n "$lacks" ]; then echo "@minirun lacks {one.name} $lacks"; else',
        f"n={amount}; {one.prepare}",
        f'echo "@minirun begin {one.name}"',
        one.body,
        f'echo "@minirun end {one.name}"',
        f'echo "@minirun result {one.name}" $({one.result})',
        'rm -f "$d"/*; fi',
    ]
