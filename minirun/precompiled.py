"""Loads minirun's modules from one file, which `minirun.precompile` wrote when it was installed.

An engine verb is short: finding, reading and checking 80 .pyc files, and what they hold for readers
alone, is a fifth of its time. The file lies beside the .pyc files, is trusted as they are, and is
valid as they are: for this interpreter, and module by module while the source has the time and size
that it had. What is not in it is imported as usual.
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

# What this interpreter writes at the head of its .pyc files: marshal's format changes with it.
_external = sys.modules["_frozen_importlib_external"]
_bootstrap = sys.modules["_frozen_importlib"]
MAGIC = b"minirun\n" + _external.MAGIC_NUMBER

PACKAGE = os.path.dirname(__file__)


def path() -> str:
    """Name the file for this version of the interpreter."""
    return f"{PACKAGE}/__pycache__/minirun.{sys.implementation.cache_tag}.code"


def use() -> None:
    """Have the modules that were not imported yet come from the file, if there is one."""
    try:
        fd = os.open(path(), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        data = os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)
    start = len(MAGIC) + 4
    if data.startswith(MAGIC) and len(data) > start:
        size = int.from_bytes(data[start - 4 : start], "little")
        index = marshal.loads(data[start : start + size])  # noqa: S302 - ours, as .pyc are
        sys.meta_path.insert(0, Finder(index, memoryview(data)[start + size :]))


class Finder:
    """Finder and loader of the modules in the index, which knows for each

    whether it is a package, its source's path below the package, that file's time in nanoseconds
    and size, where its code begins and ends, and which others of the index it imports at once.
    """

    def __init__(self, index: Mapping[str, Entry], data: memoryview) -> None:
        self.index = index
        self.data = data

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
        exec(marshal.loads(self.data[start:end]), module.__dict__)  # noqa: S302

    def _load(self, name: str) -> None:
        """Import a module as the import system does, which takes 0.03 ms more for each.

        That one is written in Python, and is made for threads and for many kinds of finders.
        """
        spec = self.find_spec(name)
        if spec is None:
            return
        module = type(sys)(name)
        module.__spec__, module.__loader__, module.__package__ = spec, spec.loader, spec.parent
        module.__file__ = spec.origin
        if spec.submodule_search_locations is not None:
            module.__path__ = spec.submodule_search_locations
        sys.modules[name] = module
        try:
            self.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        parent, _, child = name.rpartition(".")
        setattr(sys.modules[parent], child, module)
