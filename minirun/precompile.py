"""Writes the one file that `minirun.precompiled` loads: `python3 -m minirun.precompile`.

Left out of the code are line numbers, annotations and docstrings, except those of decorated
functions, which the plan of the steps and the command line show. Run it after a change of the
sources; until then what has changed is loaded as if there were no such file.
"""

from __future__ import annotations

import ast
import marshal
import os

from minirun import precompiled

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import CodeType
    from typing import Any

    Entry = tuple[bool, str, int, int, int, int, tuple[str, ...], bytes]

# What engine verbs load; reading the file is paid for by its size.
DIRECTORIES = (".", "cgroups", "cli", "kernel", "mounts")

# What `run` loads one after the other; what they import at once comes with them.
FIRST = tuple(
    f"minirun.{name}"
    for name in ("launcher", "cli", "cli.lifecycle", "making", "running", "cgroups.limits")
)


def main() -> None:
    """Write the file; another process sees the old one or the new one."""
    target = precompiled.path()
    os.makedirs(os.path.dirname(target), exist_ok=True)
    unfinished = f"{target}.{os.getpid()}"
    try:
        with open(unfinished, "wb") as file:
            file.write(archive(precompiled.PACKAGE))
        os.replace(unfinished, target)
    except BaseException:
        os.unlink(unfinished)
        raise


def archive(package: str) -> bytes:
    """Return the file's content for the sources below the directory `package`."""
    names = dict(modules(package))
    sources: dict[str, bytes] = {}
    for name, relative in names.items():
        with open(f"{package}/{relative}", "rb") as file:
            sources[name] = file.read()
    needed = {
        name: tuple(one for one in imported(source) if one in names)
        for name, source in sources.items()
    }
    codes = {
        name: marshal.dumps(compiled(sources[name], f"{package}/{names[name]}"))
        for name in in_order(needed)
    }
    boot = codes[precompiled.__name__]
    head = _index(package, names, needed, codes, 0)
    # Marshalled integers have one size up to 2**31: the second index is as long as the first.
    head = _index(package, names, needed, codes, precompiled.HEAD + len(boot) + len(head))
    sizes = len(boot).to_bytes(4, "little") + len(head).to_bytes(4, "little")
    sums = precompiled.check(boot), precompiled.check(head)
    first = precompiled.MARK + sums[0] + precompiled.INTERPRETER + sizes + sums[1]
    return b"".join((first, boot, head, *codes.values()))


def _index(
    package: str,
    names: Mapping[str, str],
    needed: Mapping[str, tuple[str, ...]],
    codes: Mapping[str, bytes],
    start: int,
) -> bytes:
    index: dict[str, Entry] = {}
    for name, code in codes.items():
        relative = names[name]
        status = os.stat(f"{package}/{relative}")
        end = start + len(code)
        is_package = relative.endswith("__init__.py")
        found = (
            status.st_mtime_ns, status.st_size, start, end, needed[name], precompiled.check(code),
        )  # fmt: skip
        index[name] = (is_package, relative, *found)
        start = end
    return marshal.dumps(index)


def in_order(needed: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Put modules in the order in which `run` runs their code, and those that it does not last."""
    order: dict[str, None] = {}

    def take(name: str, above: tuple[str, ...]) -> None:
        for other in needed.get(name, ()):
            if other not in order and other not in above:
                take(other, (*above, name))
        if name in needed:
            order[name] = None

    for name in (*FIRST, *sorted(needed)):
        if name not in order:
            take(name, ())
    return list(order)


def modules(package: str) -> Iterator[tuple[str, str]]:
    """Give the full name and the path below `package` of each module that goes in."""
    root = os.path.basename(package)
    for directory in DIRECTORIES:
        for file in sorted(os.listdir(f"{package}/{directory}")):
            if file.endswith(".py") and file != "__main__.py":
                relative = os.path.normpath(f"{directory}/{file}")
                parts = [root, *relative.removesuffix(".py").split("/")]
                yield ".".join(parts).removesuffix(".__init__"), relative


def imported(source: bytes) -> Iterator[str]:
    """Give what may be the names of the modules that a source imports at once, in their order."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in wanted:
            parts = name.split(".")
            yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def compiled(source: bytes, path: str) -> CodeType:
    """Compile a module without what only readers and type checkers use."""
    tree = ast.fix_missing_locations(_Strip().visit(ast.parse(source, path)))
    return _without_lines(compile(tree, path, "exec", dont_inherit=True))


def _without_lines(code: CodeType) -> CodeType:
    """Take the line tables away, a fifth of the file: only --debug shows tracebacks."""
    inner = (_without_lines(one) if isinstance(one, type(code)) else one for one in code.co_consts)
    return code.replace(co_linetable=b"", co_consts=tuple(inner))


class _Strip(ast.NodeTransformer):
    """Takes annotations, docstrings and what is for type checkers out of a syntax tree."""

    def visit_Module(self, node: ast.Module) -> Any:
        return self._documented(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        return self._documented(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.returns = None
        if node.decorator_list:
            self.generic_visit(node)
            return node
        return self._documented(node)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        return ast.copy_location(ast.Pass(), node) if node.module == "__future__" else node

    def visit_If(self, node: ast.If) -> Any:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            rest = [self.visit(statement) for statement in node.orelse]
            return rest or ast.copy_location(ast.Pass(), node)
        self.generic_visit(node)
        return node

    def _documented(self, node: Any) -> Any:
        if ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.copy_location(ast.Pass(), node.body[0])
        self.generic_visit(node)
        return node


if __name__ == "__main__":
    main()
