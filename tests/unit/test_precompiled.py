"""The file of compiled modules: what is loaded from it behaves as its sources, which win."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minirun import precompile, precompiled, recipe, spec, step

SOURCE = Path(precompiled.PACKAGE)

_LOOK = """
import json, sys
sys.path.insert(0, sys.argv[1])
from minirun import precompiled
precompiled.use()
from minirun import recipe, spec, step
from minirun.kernel import libc
tuples = [steps for _, steps in recipe.CREATE]
print(json.dumps({
    "from_file": sorted(
        name for name, module in sys.modules.items()
        if type(getattr(module.__spec__, "loader", None)).__name__ == "Finder"
    ),
    "sentences": [step.sentence_of(one) for steps in tuples for one in steps],
    "spec": repr(spec.Spec.decode({"ociVersion": "1.0.2", "hostname": "web"})),
    "file": libc.__file__,
    "line": libc.call.__code__.co_firstlineno,
    "traced": libc.call.__code__.co_filename,
    "errno": getattr(libc, "ADDED", None),
    "attributes": {
        name: [
            module.__spec__.name, module.__spec__.parent, module.__spec__.origin,
            module.__package__, module.__file__, list(getattr(module, "__path__", [])),
            "." not in name or getattr(sys.modules[module.__spec__.parent.rpartition(".")[0]
                if hasattr(module, "__path__") else module.__spec__.parent],
                name.rpartition(".")[2]) is module,
        ]
        for name, module in sys.modules.items() if name.startswith("minirun")
    },
    "stripped": [libc.call.__doc__, libc.call.__annotations__],
}))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package with its file written."""
    shutil.copytree(SOURCE, tmp_path / "minirun", ignore=shutil.ignore_patterns("__pycache__"))
    code = "import sys; sys.path.insert(0, sys.argv[1]); from minirun import precompile as p; "
    subprocess.run([sys.executable, "-ISB", "-c", code + "p.main()", tmp_path], check=True)
    return tmp_path


def look(copy: Path) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-ISB", "-c", _LOOK, copy], check=True, capture_output=True, text=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def code_file(copy: Path) -> Path:
    return copy / "minirun/__pycache__" / Path(precompiled.path()).name


def test_modules_from_the_file_are_what_their_sources_are(copy: Path) -> None:
    found = look(copy)
    assert {"minirun.recipe", "minirun.kernel", "minirun.kernel.libc"} <= set(found["from_file"])  # type: ignore[call-overload]
    tuples = [steps for _, steps in recipe.CREATE]
    assert found["sentences"] == [step.sentence_of(one) for steps in tuples for one in steps]
    expected = spec.Spec.decode({"ociVersion": "1.0.2", "hostname": "web"})
    assert found["spec"] == repr(expected)


def test_modules_look_as_if_imported_from_their_sources(copy: Path) -> None:
    fast = look(copy)["attributes"]
    code_file(copy).unlink()
    usual = look(copy)["attributes"]
    assert fast == usual


def begin(copy: Path) -> dict[str, Any]:
    """Look at what is loaded when the command begins as scripts/install writes it."""
    script = (SOURCE.parent / "scripts/install").read_text()
    start = script.index('head = b""\n')
    boot = script[start : script.index("\nLAUNCHER\n", start)]
    look_more = _LOOK.replace("from minirun import precompiled\nprecompiled.use()", boot)
    code = look_more.replace("import json, sys\n", "import json, sys\npackage = sys.argv[2]\n")
    done = subprocess.run(
        [sys.executable, "-ISB", "-c", code, copy, copy / "minirun"],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_command_begins_with_the_file(copy: Path) -> None:
    """Even the first modules come from it."""
    found = begin(copy)
    assert {"minirun", "minirun.precompiled", "minirun.recipe"} <= set(found["from_file"])
    usual = look(copy)
    begun = found["attributes"].pop("minirun.precompiled")
    assert begun == usual["attributes"].pop("minirun.precompiled")  # type: ignore[attr-defined]
    # Without the boot the package itself is found by its path.
    assert found["attributes"] == usual["attributes"]


def test_debug_has_line_numbers(copy: Path) -> None:
    code = _LOOK.replace("import json, sys\n", "import json, sys\nsys.argv.append('--debug')\n", 1)
    done = subprocess.run(
        [sys.executable, "-ISB", "-c", code, copy], check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout)["from_file"] == []


def test_a_file_that_is_replaced_meanwhile_is_not_mixed_in(copy: Path) -> None:
    path = code_file(copy)
    finder = precompiled.Finder.of(str(path))
    assert finder is not None
    start, end = finder.index["minirun.recipe"][4:6]
    before = finder.code(start, end)
    assert before == path.read_bytes()[start:end]
    finder.window = b""
    shutil.copy(path, path.with_name("other"))
    path.with_name("other").rename(path)
    with pytest.raises(ImportError, match="replaced meanwhile"):
        finder.code(start, end)


def test_modules_lie_in_the_order_of_their_use() -> None:
    needed = {"a": ("b", "c"), "b": ("c",), "c": ("a",), "d": ()}
    assert precompile.in_order(needed) == ["c", "b", "a", "d"]
    order = precompile.in_order(
        {
            name: tuple(precompile.imported((SOURCE / path).read_bytes()))
            for name, path in precompile.modules(str(SOURCE))
        }
    )
    assert order.index("minirun.kernel.mount") < order.index("minirun.mounts")
    assert order.index("minirun.running") < order.index("minirun.cli.spec")


def test_what_is_imported_at_once() -> None:
    source = b"""
import os, minirun.log
from minirun import mounts, step as other
if TYPE_CHECKING:
    from minirun.setup import Setup
def later():
    from minirun import seccomp
"""
    package = "minirun"
    assert list(precompile.imported(source)) == [
        "os", package, "minirun.log", package, "minirun.mounts", package, "minirun.step",
    ]  # fmt: skip


def test_tracebacks_find_the_source(copy: Path) -> None:
    found = look(copy)
    libc = str(copy / "minirun/kernel/libc.py")
    assert (found["file"], found["traced"]) == (libc, libc)
    line = int(str(found["line"]))
    assert Path(libc).read_text().splitlines()[line - 1].startswith("def call(")


def test_what_only_readers_use_is_left_out(copy: Path) -> None:
    assert look(copy)["stripped"] == [None, {}]


def test_a_changed_source_wins(copy: Path) -> None:
    path = copy / "minirun/kernel/libc.py"
    path.write_text(path.read_text() + "\nADDED = 1\n")
    found = look(copy)
    assert found["errno"] == 1
    assert "minirun.kernel.libc" not in str(found["from_file"])
    assert "minirun.recipe" in str(found["from_file"])


def test_a_touched_source_wins(copy: Path) -> None:
    os.utime(copy / "minirun/recipe.py", ns=(1, 1))
    assert "minirun.recipe" not in str(look(copy)["from_file"])


@pytest.mark.parametrize("content", [b"", b"minirun\n", b"other interpreter's" * 100])
def test_a_file_of_another_interpreter_is_ignored(copy: Path, content: bytes) -> None:
    code_file(copy).write_bytes(content)
    assert look(copy)["from_file"] == []


def parts(content: bytes) -> tuple[int, int]:
    """Tell where the boot ends, and where the index does."""
    boot, index = (int.from_bytes(content[20 + at : 24 + at], "little") for at in (0, 4))
    return precompiled.HEAD + boot, precompiled.HEAD + boot + index


@pytest.mark.parametrize("where", ["head", "boot", "index", "codes"])
@pytest.mark.parametrize("how", ["cut", "bytes"])
def test_a_damaged_file(copy: Path, where: str, how: str) -> None:
    """The sources serve in its place; unmarshalling it would raise anything, or crash."""
    content = bytearray(code_file(copy).read_bytes())
    boot, index = parts(bytes(content))
    at = {"head": 22, "boot": boot - 100, "index": index - 100, "codes": index + 100}[where]
    if how == "cut":
        del content[at:]
    else:
        content[at : at + 9] = b"\xe3" * 9
    code_file(copy).write_bytes(content)
    usable = where == "codes"
    for found, expected in (
        (begin(copy), usable),
        (look(copy), usable or (where, how) == ("boot", "bytes")),  # which has begun already
    ):
        assert found["spec"] == repr(spec.Spec.decode({"ociVersion": "1.0.2", "hostname": "web"}))
        assert bool(found["from_file"]) == expected


def test_a_damaged_module_is_the_sources(copy: Path) -> None:
    finder = precompiled.Finder.of(str(code_file(copy)))
    assert finder is not None
    start, end = finder.index["minirun.kernel.libc"][4:6]
    with code_file(copy).open("r+b") as file:
        file.seek((start + end) // 2)
        file.write(bytes(20))
    assert look(copy)["stripped"] != [None, {}]


def test_a_file_that_goes_meanwhile(copy: Path) -> None:
    """As an installation replaces it; what was found in it is loaded from its source."""
    gone = "from minirun import precompiled; precompiled.use(); import os, sys\n"
    gone += "from minirun import errors; os.unlink(precompiled.path())\n"
    gone += "sys.meta_path[0].window = b''; from minirun import spec; print(spec.__file__)"
    code = "import sys; sys.path.insert(0, sys.argv[1])\n" + gone
    done = subprocess.run(
        [sys.executable, "-ISB", "-c", code, copy], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(copy / "minirun/spec.py")


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "group", "everybody", "another's"])
def test_a_file_that_is_not_ours(copy: Path, kind: str) -> None:
    """Code of somebody else's is not run, not even to be refused."""
    path = code_file(copy)
    if kind in ("fifo", "directory", "link"):
        path.unlink()
        make = {"fifo": os.mkfifo, "directory": os.mkdir, "link": lambda p: os.symlink("/x", p)}
        make[kind](path)
    elif kind == "another's":
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        os.chown(path, 4242, -1)
    else:
        path.chmod(0o664 if kind == "group" else 0o646)
    assert look(copy)["from_file"] == begin(copy)["from_file"] == []


def test_a_disk_that_is_full_leaves_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precompiled, "PACKAGE", str(copy / "minirun"))
    before = code_file(copy).read_bytes()

    def full(_package: str) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(precompile, "archive", full)
    with pytest.raises(OSError, match="No space"):
        precompile.main()
    assert [one.read_bytes() for one in code_file(copy).parent.iterdir()] == [before]


def test_without_the_file_all_is_as_usual(copy: Path) -> None:
    code_file(copy).unlink()
    assert look(copy)["from_file"] == []


def test_asserts_stay() -> None:
    code = precompile.compiled(b"def f(x: int) -> int:\n 'doc'\n assert x\n y: int = x\n", "f.py")
    names: dict[str, object] = {}
    exec(code, names)
    with pytest.raises(AssertionError):
        names["f"](0)  # type: ignore[operator]
