"""Loads minirun's modules from one file, which `minirun.precompile` wrote when it was installed.

An engine verb is short: finding, reading and checking 80 .pyc files, and what they hold for readers
alone, is a fifth of its time. The file lies beside the .pyc files, is trusted as they are, and is
valid as they are: for this interpreter, and module by module while the source has the time and size
that it had. What is not in it is imported as usual; so is all with --debug, for the line numbers.

    MAGIC       8 bytes of ours, 4 of this interpreter's .pyc files: marshal's format changes
    sizes       of the two parts that follow, 4 bytes each
    boot        this module: the installed command begins with it, before any module is looked for
    index       see `Finder`
    codes       in the order in which `run` loads them
"""

from __future__ import annotations

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    Entry = tuple[bool, str, int, int, int, int, tuple[str, ...]]

# What this interpreter writes at the head of its .pyc files.
_external = sys.modules["_frozen_importlib_external"]
_bootstrap = sys.modules["_frozen_importlib"]
MAGIC = b"minirun\n" + _external.MAGIC_NUMBER
SIZES = len(MAGIC) + 8

PACKAGE = os.path.dirname(__file__)

_WINDOW = 1 << 16  # read at once: small enough for malloc(3) to use the same memory again


def path() -> str:
    """Name the file for this version of the interpreter."""
    return f"{PACKAGE}/__pycache__/minirun.{sys.implementation.cache_tag}.code"


def use() -> None:
    """Have the modules that were not imported yet come from the file, if there is one."""
    if not _debugging() and not any(isinstance(one, Finder) for one in sys.meta_path):
        finder = Finder.of(path())
        if finder is not None:
            sys.meta_path.insert(0, finder)


def begin(module: ModuleType) -> None:
    """Start from the file: `module` is this one, made by the installed command of the file's boot.

    It becomes what an import would have made of it.
    """
    finder = None if _debugging() else Finder.of(path())
    if finder is None:
        return
    spec = finder.find_spec(__name__)
    if spec is None:
        return
    sys.meta_path.insert(0, finder)
    package, _, name = __name__.partition(".")
    _describe(module, spec)
    sys.modules[__name__] = module
    setattr(__import__(package), name, module)


def _debugging() -> bool:
    return "--debug" in sys.argv or "-debug" in sys.argv


def _describe(module: ModuleType, spec: ModuleSpec) -> None:
    module.__spec__, module.__loader__, module.__package__ = spec, spec.loader, spec.parent
    module.__file__ = spec.origin
    if spec.submodule_search_locations is not None:
        module.__path__ = spec.submodule_search_locations


class Finder:
    """Finder and loader of the modules in the index, which knows for each

    whether it is a package, its source's path below the package, that file's time in nanoseconds
    and size, where its code begins and ends, and which others of the index it imports at once.
    """

    def __init__(self, path: str, identity: tuple[int, int], index: Mapping[str, Entry]) -> None:
        self.path = path
        self.identity = identity
        self.index = index
        self.window = b""
        self.offset = 0

    @classmethod
    def of(cls, path: str) -> Finder | None:
        """Open a file; None if it is not there, or not for this interpreter."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            status = os.fstat(fd)
            data = os.read(fd, _WINDOW)
            if not data.startswith(MAGIC) or len(data) < SIZES:
                return None
            boot = int.from_bytes(data[-8 + SIZES : -4 + SIZES], "little")
            size = int.from_bytes(data[-4 + SIZES : SIZES], "little")
            start = SIZES + boot
            index = data[start : start + size] if start + size <= len(data) else b""
            index = index or os.pread(fd, size, start)
        finally:
            os.close(fd)
        identity = (status.st_ino, status.st_mtime_ns)
        return cls(path, identity, marshal.loads(index))  # noqa: S302 - ours, as .pyc are

    def code(self, start: int, end: int) -> bytes:
        """Read a part of the file. Raises ImportError if it is not the one that the index is of.

        No descriptor stays open: one of the numbers that --preserve-fds means would be taken.
        """
        if not self.offset <= start <= end <= self.offset + len(self.window):
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                status = os.fstat(fd)
                if (status.st_ino, status.st_mtime_ns) != self.identity:
                    raise ImportError(f"{self.path} was replaced meanwhile")
                self.window = b""  # given back first, to be used again
                self.window = os.pread(fd, max(_WINDOW, end - start), start)
                self.offset = start
            finally:
                os.close(fd)
        return self.window[start - self.offset : end - self.offset]

    def find_spec(
        self, name: str, _path: object = None, _target: object = None
    ) -> ModuleSpec | None:
        """Find a module that has not changed since; None leaves it to the next finder."""
        entry = self.index.get(name)
        if entry is None:
            return None
        package, relative, time, size, _start, _end, _imports = entry
        source = f"{PACKAGE}/{relative}"
        try:
            status = os.stat(source)
        except OSError:
            return None
        if status.st_mtime_ns != time or status.st_size != size:
            return None
        made: ModuleSpec = _bootstrap.ModuleSpec(name, self, origin=source, is_package=package)
        if package:
            made.submodule_search_locations = [os.path.dirname(source)]
        made.has_location = True
        made.cached = source  # else it is worked out, module by module
        return made

    def create_module(self, _spec: ModuleSpec) -> None:
        """Leave it to the import system to make the module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code in it, the modules that it imports being there."""
        start, end, imports = self.index[module.__name__][4:]
        for name in imports:
            if name not in sys.modules:
                self._load(name)
        exec(marshal.loads(self.code(start, end)), module.__dict__)  # noqa: S302

    def _load(self, name: str) -> None:
        """Import a module as the import system does, which takes 0.03 ms more for each.

        That one is written in Python, and is made for threads and for many kinds of finders.
        """
        spec = self.find_spec(name)
        if spec is None:
            return
        module = type(sys)(name)
        _describe(module, spec)
        sys.modules[name] = module
        try:
            self.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        parent, _, child = name.rpartition(".")
        setattr(sys.modules[parent], child, module)
