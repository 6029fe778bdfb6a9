"""Loads minirun's modules from one file, which `minirun.precompile` wrote when it was installed.

An engine verb is short: finding, reading and checking 80 .pyc files, and what they hold for readers
alone, is a fifth of its time. The file lies beside the .pyc files and is valid as they are: for
this interpreter, and module by module while the source has the time and size that it had. It must
belong to the owner of the sources, and nobody else may write to it; what is cut off or damaged does
not fit its check sum. What is not in it, or not valid, is imported as usual; so is all with
--debug, for the line numbers.

    MARK        8 bytes
    check sum   of boot, 8 bytes: `check`
    interpreter 4 bytes of its .pyc files: marshal's format changes
    sizes       of boot and index, 4 bytes each
    check sum   of index
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

    Entry = tuple[bool, str, int, int, int, int, tuple[str, ...], bytes]

_external = sys.modules["_frozen_importlib_external"]
_bootstrap = sys.modules["_frozen_importlib"]
MARK = b"minirun\n"
INTERPRETER: bytes = _external.MAGIC_NUMBER
HEAD = 36  # bytes before boot

PACKAGE = os.path.dirname(__file__)

_WINDOW = 1 << 16  # read at once: small enough for malloc(3) to use the same memory again


def path() -> str:
    """Name the file for this version of the interpreter."""
    return f"{PACKAGE}/__pycache__/minirun.{sys.implementation.cache_tag}.code"


def check(data: bytes) -> bytes:
    """Return the check sum of a part: SipHash, as .pyc files have it that are checked by hash."""
    found: bytes = sys.modules["_imp"].source_hash(0, data)
    return found


def _ours(status: os.stat_result) -> bool:
    """Whether only who can change the sources can have written a file."""
    return status.st_uid == os.stat(PACKAGE).st_uid and not status.st_mode & 0o022


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
    and size, where its code begins and ends, which others of the index it imports at once, and its
    code's check sum.
    """

    def __init__(self, path: str, identity: tuple[int, int], index: Mapping[str, Entry]) -> None:
        self.path = path
        self.identity = identity
        self.index = index
        self.window = b""
        self.offset = 0

    @classmethod
    def of(cls, path: str) -> Finder | None:
        """Open a file; None if it is not there, damaged, another's, or for another interpreter."""
        try:
            # O_NONBLOCK: what is no file must not keep us waiting.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            status = os.fstat(fd)
            data = os.read(fd, _WINDOW)
            if not (data.startswith(MARK) and data[16:20] == INTERPRETER and _ours(status)):
                return None
            start = HEAD + int.from_bytes(data[20:24], "little")
            end = start + int.from_bytes(data[24:28], "little")
            index = data[start:end] if end <= len(data) else os.pread(fd, end - start, start)
        except OSError:
            return None
        finally:
            os.close(fd)
        if check(index) != data[28:HEAD]:
            return None
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
        package, relative, time, size, *_ = entry
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
        start, end, imports, expected = self.index[module.__name__][4:]
        for name in imports:
            if name not in sys.modules:
                self._load(name)
        try:
            data = self.code(start, end)
        except (ImportError, OSError):
            data = b""
        if check(data) == expected:
            code = marshal.loads(data)  # noqa: S302 - ours, as .pyc are
        else:
            # The source is still the one that the index is of: `find_spec`.
            name = module.__name__
            code = _external.SourceFileLoader(name, module.__file__).get_code(name)
        exec(code, module.__dict__)

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
