"""Who may import whom, read from the source: the direction that the design has, and no cycle.

A module imports its own layer and those above it in this list, never one below.
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "minirun"

# From the kernel to the command line. A name stands for the module or for all of a package.
LAYERS = {
    "kernel": "kernel",
    "words": """errors record refuse ranges spec jsontext units log step setup grammar options
        profiles precompiled precompile rootfsoptions __version__""",
    "helpers": "inroot procfs idmap channel remove state blockdev dbus privilege tether unixsocket",
    "facilities": """capabilities cgroups copyup devicefilter devicerules devices enosys
        executable filtercache hooks hostname joining keyrings labels memorypolicy mountoptions
        mounts namespaces netdevices outside payload personality program resctrl rlimits
        scheduling seccomp sync syscallfilter sysctl terminal""",
    "recipe": """recipe child parent plan validate validate_namespaces validate_process
        validate_rootless""",
    "runtime": """changing checkpointing container criu ending executing foreground making
        notifysocket restoring running starting launcher watching""",
    "tools": "compare network rootfs virt",
    "engine": "engine",
    "cli": "cli __main__",
}

# A facility is one of the kernel's things, and knows no other. These are parts of one another.
PARTS = {
    "devicerules": {"devicefilter"},
    "joining": {"namespaces"},
    "mounts": {"copyup", "mountoptions"},
    "outside": {"namespaces"},
    "payload": {"labels"},
    "program": {"executable"},
    "seccomp": {"enosys", "filtercache"},
    "syscallfilter": {"seccomp"},
}

# The entry: it looks at the command line, then goes up to it.
UPWARDS = {("launcher", "cli")}

KERNEL_MAY = {"os", "sys", "errno", "ctypes", "_ctypes", "fcntl", "mmap", "struct"}

# Modules that few may import, and who: by module, or by package.
ONLY = {
    "click": {"cli"},
    "rich": {"cli"},
    "pyroute2": {"network"},
    "yaml": {"rootfs", "cli", "pod"},
    "prctl": {"tether"},
    "psutil": {"compare"},
    "ctypes": {"kernel"},
    "_ctypes": {"kernel"},
    "subprocess": {"network.firewall", "rootfs.busybox", "cli"},
    "tempfile": set(),
    "pickle": set(),
    "multiprocessing": set(),
    "shelve": set(),
    "pwd": set(),
    "grp": set(),
    "getpass": set(),
    "threading": set(),
    "logging": set(),
    "dataclasses": set(),
    "typing": {"cli"},
}

NEWER = {"compression"}  # of the standard library since 3.14


@cache
def modules() -> dict[str, Path]:
    """All modules by name below the package; a package itself by its own."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


class Imports(ast.NodeVisitor):
    """What a module imports when it runs: at its top, and later within functions."""

    def __init__(self) -> None:
        self.early: set[str] = set()
        self.late: set[str] = set()
        self.depth = 0

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for child in node.orelse:
                self.visit(child)
        else:
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    def visit_Import(self, node: ast.Import) -> None:
        self.add(*(alias.name for alias in node.names))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "a relative import"
        base = node.module or ""
        names = [f"{base}.{alias.name}" for alias in node.names]
        ours = {f"minirun.{name}" for name in modules()}
        self.add(*(name if name in ours else base for name in names))

    def add(self, *names: str) -> None:
        (self.late if self.depth else self.early).update(names)


@cache
def imports(name: str) -> Imports:
    found = Imports()
    found.visit(ast.parse(modules()[name].read_text()))
    return found


def ours(names: set[str]) -> set[str]:
    return {name.removeprefix("minirun.") for name in names if name.startswith("minirun.")}


def outside(names: set[str]) -> set[str]:
    return {name for name in names if not name.startswith(("minirun", "__future__"))}


def layer(name: str) -> int:
    for number, members in enumerate(LAYERS.values()):
        if name.partition(".")[0] in members.split():
            return number
    raise AssertionError(f"{name} is in no layer: add it to LAYERS")


def belongs(name: str, owners: set[str]) -> bool:
    return any(name == owner or name.startswith(f"{owner}.") for owner in owners)


@pytest.mark.parametrize("name", sorted(filter(None, modules())))
def test_imports_go_one_way(name: str) -> None:
    found = imports(name)
    for other in ours(found.early | found.late):
        if (name, other.partition(".")[0]) not in UPWARDS:
            assert layer(other) <= layer(name), f"{name} imports {other}"


@pytest.mark.parametrize("name", LAYERS["facilities"].split())
def test_a_facility_knows_no_other(name: str) -> None:
    facilities = set(LAYERS["facilities"].split())
    members = [module for module in modules() if module.partition(".")[0] == name]
    for module in members:
        found = imports(module)
        used = {other.partition(".")[0] for other in ours(found.early | found.late)}
        assert used & facilities - {name} <= PARTS.get(name, set()), module


@pytest.mark.parametrize("name", sorted(n for n in modules() if n.startswith("kernel")))
def test_the_kernel_layer_needs_nothing(name: str) -> None:
    found = imports(name)
    assert outside(found.early | found.late) <= KERNEL_MAY
    assert all(other.startswith("kernel") for other in ours(found.early | found.late))


@pytest.mark.parametrize("name", sorted(modules()))
def test_what_few_may_import(name: str) -> None:
    found = imports(name)
    for other in outside(found.early | found.late):
        top = other.partition(".")[0]
        assert belongs(name, ONLY.get(top, {name})), f"{name} imports {other}"
        if top not in sys.stdlib_module_names | NEWER:
            assert top in ONLY, f"{name} imports {other}: who may?"


def test_no_cycle_at_import() -> None:
    done: set[str] = set()

    def follow(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        if name in done or name not in modules():
            return
        for other in sorted(ours(imports(name).early)):
            follow(other, (*path, name))
        done.add(name)

    for name in sorted(modules()):
        follow(name, ())


def test_every_module_is_in_a_layer_and_every_name_is_a_module() -> None:
    tops = {name.partition(".")[0] for name in modules() if name}
    named = {name for members in LAYERS.values() for name in members.split()} - {"__version__"}
    assert named == tops


FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "os.execvp", "marshal.loads",
                   "os.path.expanduser", "os.getlogin", "ctypes.util.find_library"}  # fmt: skip
MAY_CALL = {"precompiled": {"exec", "marshal.loads"}}


@pytest.mark.parametrize("name", sorted(modules()))
def test_what_nobody_may_call(name: str) -> None:
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in FORBIDDEN_CALLS - MAY_CALL.get(name, set()), f"{name}: {called}"


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_error_is_passed_over_in_silence(name: str) -> None:
    """`except OSError: pass` would let a security step fail unseen: the errors have names."""
    for node in ast.walk(ast.parse(modules()[name].read_text())):
        if not isinstance(node, ast.ExceptHandler):
            continue
        empty = all(isinstance(child, ast.Pass) for child in node.body)
        caught = ast.unparse(node.type) if node.type else "everything"
        broad = {"OSError", "Exception", "BaseException", "everything", "MinirunError"}
        assert not (empty and caught in broad), f"{name}:{node.lineno}: except {caught}: pass"
