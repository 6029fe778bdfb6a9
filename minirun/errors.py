"""What minirun raises, and what a caller sees of it.

    MinirunError                 anything minirun refuses or fails at; exit code 1
     ├─ UsageError               the command line cannot be understood
     │   └─ UnknownCommand       there is no such verb; exit code 3, as of runc
     ├─ ConfigError              config.json is refused; names the field by its JSON path
     ├─ StateError               the container is not in the state that the verb needs
     │   ├─ DoesNotExist         no such container
     │   ├─ AlreadyExists        the ID is taken
     │   └─ NotRunning           its process is gone
     ├─ CannotExecute            the program of the container; 126 or 127 to whoever asked
     ├─ StepFailed               a step of the recipe failed; carries the system call
     └─ Unsupported              the kernel or the host lacks what was asked for

`str(error)` is one machine line: lower case, no full stop, holding the words that engines match
(minirun(1), "ERRORS"). `cause` and `fix` are for people and are printed on a terminal only: advice
in a message that an engine parses would change the engine's exit code.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class MinirunError(Exception):
    """Anything that minirun refuses or fails at.

    `message` is the machine line; `cause` and `fix` are sentences for people, either may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, *, cause: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cause = cause
        self.fix = fix


class UsageError(MinirunError):
    """The command line cannot be understood."""


class UnknownCommand(UsageError):
    """There is no such verb."""

    exit_code = 3


class ConfigError(MinirunError):
    """A configuration is refused. `path` is the field's JSON path, such as `linux.resources`."""

    def __init__(self, path: str, problem: str, *, cause: str = "", fix: str = "") -> None:
        super().__init__(f"invalid config: {path}: {problem}", cause=cause, fix=fix)
        self.path = path
        self.problem = problem


class StateError(MinirunError):
    """The container is not in the state that the verb needs."""


class DoesNotExist(StateError):
    """No container has this ID."""

    def __init__(self, cid: str) -> None:
        super().__init__(
            f"container does not exist: {cid}", fix="minirun list shows which there are"
        )


class AlreadyExists(StateError):
    """The ID is taken."""


class NotRunning(StateError):
    """The container's process is gone."""


class Unsupported(MinirunError):
    """The kernel or the host lacks what was asked for."""


class CannotExecute(MinirunError):
    """The program cannot be executed. The message has the words that engines match."""


class StepFailed(MinirunError):
    """A step of the recipe failed.

    `step` is the step's name as the plan prints it; `error` what was raised in it. The message is
    `<step>: <call>: <strerror>`, the call with its flags by name.
    """

    def __init__(self, step: str, error: BaseException, *, cause: str = "", fix: str = "") -> None:
        super().__init__(f"{step}: {describe(error)}", cause=cause, fix=fix)
        self.step = step
        self.error = error


def describe(error: BaseException) -> str:
    """Say `error` in one line; an OSError raised by a binding tells its call with flag names."""
    if isinstance(error, MinirunError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        call = getattr(error, "call", None)
        where = call or (repr(error.filename) if error.filename is not None else "")
        return f"{where}: {error.strerror.lower()}" if where else error.strerror.lower()
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def similar(word: str, known: Iterable[str]) -> str:
    """Ask whether one of the known words was meant; "" where none is like it."""
    import difflib  # 10 ms, which a person waits for once

    found = difflib.get_close_matches(word, list(known), 1, 0.66)
    return f"did you mean {found[0]}?" if found else ""
