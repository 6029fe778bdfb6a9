"""create, start, run, state, kill, delete, pause, resume: one call each."""

from __future__ import annotations

from minirun import container, jsontext
from minirun.cli import write
from minirun.cli.place import container_id, state_root
from minirun.cli.wrap import wrapped
from minirun.errors import MinirunError
from minirun.setup import Launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.grammar import Options


def launch_of(options: Options) -> Launch:
    """Gather the launch flags of `create` and `run`."""
    return Launch(
        options.bundle or ".",
        console_socket=options.console_socket,
        pid_file=options.pid_file,
        pidfd_socket=options.pidfd_socket,
        no_pivot=options.no_pivot,
        no_new_keyring=options.no_new_keyring,
        preserve_fds=preserve_fds(options),
        detach=options.verb == "create" or options.detach,
    )


def preserve_fds(options: Options) -> int:
    """Return how many more descriptors are passed on. Raises MinirunError if negative."""
    count = int(options.preserve_fds)
    if count < 0:
        raise MinirunError(f"invalid number of file descriptors to preserve: {count}")
    return count


@wrapped("create failed")
def create(options: Options) -> int:
    """`minirun create`."""
    container.create(state_root(options), container_id(options), launch_of(options))
    return 0


@wrapped("run failed")
def run(options: Options) -> int:
    """`minirun run`; the exit status is the container's."""
    return container.run(
        state_root(options),
        container_id(options),
        launch_of(options),
        detach=options.detach,
        keep=options.keep,
    )


def start(options: Options) -> int:
    """`minirun start`."""
    container.start(state_root(options), container_id(options))
    return 0


def state(options: Options) -> int:
    """`minirun state`."""
    found = container.state(state_root(options), container_id(options))
    return write(jsontext.dumps(found, "  ") + "\n")


def kill(options: Options) -> int:
    """`minirun kill`."""
    number = signal_number(options.args[1] if len(options.args) > 1 else "SIGTERM")
    container.kill(state_root(options), container_id(options), number, options.all)
    return 0


def delete(options: Options) -> int:
    """`minirun delete`."""
    container.delete(state_root(options), container_id(options), options.force)
    return 0


def pause(options: Options) -> int:
    """`minirun pause`."""
    container.pause(state_root(options), container_id(options))
    return 0


def resume(options: Options) -> int:
    """`minirun resume`."""
    container.resume(state_root(options), container_id(options))
    return 0


def signal_number(text: str) -> int:
    """Read a signal: a number from 0 to 64, or a name with or without SIG (RTMIN+1 as well).

    0 asks whether the process is there. Raises MinirunError.
    """
    # The C part of `signal`, whose enums cost 25 ms.
    import _signal  # type: ignore[import-not-found]

    if text.isascii() and text.isdigit():
        number = int(text[:4])
        if number <= 64 and len(text) <= 3:
            return number
    name = text.upper().removeprefix("SIG")
    base, sign, offset = name.partition("+" if "+" in name else "-")
    if sign and base in ("RTMIN", "RTMAX") and offset.isascii() and offset.isdigit():
        edge = int(getattr(_signal, f"SIG{base}"))
        number = edge + int(sign + offset[:3])
        if _signal.SIGRTMIN <= number <= _signal.SIGRTMAX:
            return number
    # Not every name in the module that begins with SIG is a signal: SIG_BLOCK is none.
    if name.isascii() and name.isalnum() and hasattr(_signal, f"SIG{name}"):
        return int(getattr(_signal, f"SIG{name}"))
    raise MinirunError(f'unknown signal "{text}"')
