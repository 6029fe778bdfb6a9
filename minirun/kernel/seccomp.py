"""seccomp(2): put the calling thread under a filter of classic BPF.

A filter is an array of `struct sock_filter`, eight bytes each (linux/filter.h). Once it is in place
every system call of the caller is subject to it, those of the interpreter too; so `prepare` makes
everything beforehand and what it returns performs one system call and nothing else.
"""

from __future__ import annotations

import errno
import struct

from minirun.kernel.c import addressof, c_uint, c_void_p, create_string_buffer, get_errno
from minirun.kernel.libc import call, failure, flags, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# include/uapi/linux/seccomp.h
SECCOMP_SET_MODE_FILTER = 1

SECCOMP_FILTER_FLAG_TSYNC = 1 << 0
SECCOMP_FILTER_FLAG_LOG = 1 << 1
SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1 << 2
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
SECCOMP_FILTER_FLAG_TSYNC_ESRCH = 1 << 4
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5

FILTER_FLAG_NAMES = {
    name: value
    for name, value in list(globals().items())
    if name.startswith("SECCOMP_FILTER_FLAG_")
}

SECCOMP_RET_KILL_PROCESS = 0x80000000
SECCOMP_RET_KILL_THREAD = 0x00000000
SECCOMP_RET_TRAP = 0x00030000
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_USER_NOTIF = 0x7FC00000
SECCOMP_RET_TRACE = 0x7FF00000
SECCOMP_RET_LOG = 0x7FFC0000
SECCOMP_RET_ALLOW = 0x7FFF0000

INSTRUCTION_SIZE = 8
BPF_MAXINSNS = 4096  # include/uapi/linux/bpf_common.h

_NUMBERS = {
    "x86_64": 317,
    "aarch64": 277,
    "riscv64": 277,
    "loongarch64": 277,
    "i686": 354,
    "armv7l": 383,
    "ppc64le": 358,
    "s390x": 348,
}
_seccomp = syscall(_NUMBERS, c_uint, c_uint, c_void_p)


class Prepared:
    """A filter ready to be installed; holds the memory that the kernel will read."""

    def __init__(self, program: bytes, flag_word: int) -> None:
        count, rest = divmod(len(program), INSTRUCTION_SIZE)
        if rest or not 0 < count <= BPF_MAXINSNS:
            raise ValueError(f"a filter has 1 to {BPF_MAXINSNS} instructions, not {count}")
        self._memory = create_string_buffer(program, len(program))
        # struct sock_fprog
        head = struct.pack("=HxxxxxxQ", count, addressof(self._memory))
        self._fprog = create_string_buffer(head, len(head))
        self.flags = flag_word
        self.count = count
        self.args = (SECCOMP_SET_MODE_FILTER, flag_word, addressof(self._fprog))

    def text(self) -> str:
        """Render the call as strace would."""
        word = flags(self.flags, FILTER_FLAG_NAMES)
        return f"seccomp(SECCOMP_SET_MODE_FILTER, {word}, {{len={self.count}}})"


def set_mode_filter(program: bytes, flag_word: int = 0) -> int:
    """Install `program` on the calling thread; return 0, or the listener with NEW_LISTENER.

    Raises OSError: EACCES without CAP_SYS_ADMIN and without no_new_privs, EINVAL for a program that
    the kernel does not accept or a flag that it does not know, ESRCH when SECCOMP_FILTER_FLAG_TSYNC
    found a thread that it could not bring along. Source: seccomp(2).
    """
    prepared = Prepared(program, flag_word)
    return _refuse_divergence(prepared, call(_seccomp, prepared.args, prepared.text))


def knows_flag(flag: int) -> bool:
    """Tell whether this kernel takes a flag; no filter is installed, and no privilege needed.

    The kernel looks at the flags first (EINVAL), then for the program, of which there is none.
    """
    if flag == SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV:
        flag |= SECCOMP_FILTER_FLAG_NEW_LISTENER  # without it the flag is refused
    try:
        call(
            _seccomp,
            (SECCOMP_SET_MODE_FILTER, flag, None),
            lambda: f"seccomp(SECCOMP_SET_MODE_FILTER, {flags(flag, FILTER_FLAG_NAMES)}, NULL)",
        )
    except OSError as error:
        return error.errno == errno.EFAULT
    return False


def prepare(program: bytes, flag_word: int = 0) -> Callable[[], int]:
    """Return a function that does what `set_mode_filter` does, by exactly one system call.

    It is not told to the tracer, who would have to write under the new filter.
    """
    prepared = Prepared(program, flag_word)
    entry, args = _seccomp, prepared.args
    get_errno()  # allocates the thread's copy of errno

    def install() -> int:
        result: int = entry(*args)
        if result == -1:
            raise failure(get_errno(), prepared.text())
        return _refuse_divergence(prepared, result)

    return install


def _refuse_divergence(prepared: Prepared, result: int) -> int:
    # With TSYNC alone a positive result is no success but the thread that stands in the way.
    if result > 0 and not prepared.flags & SECCOMP_FILTER_FLAG_NEW_LISTENER:
        raise failure(3, prepared.text())  # ESRCH
    return result
