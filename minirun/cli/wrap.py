"""The words that runc puts before an error of create, run and exec, and exec's exit status."""

from __future__ import annotations

from minirun.errors import MinirunError, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from minirun.grammar import Options

    Handler = Callable[[Options], int]


class Failed(MinirunError):
    """A failure with the verb's words before it, and the verb's exit status."""

    def __init__(self, message: str, exit_code: int, cause: str, fix: str) -> None:
        super().__init__(message, cause=cause, fix=fix)
        self.exit_code = exit_code


def wrapped(words: str, exit_code: int = 1) -> Callable[[Handler], Handler]:
    """Have a verb's errors begin with `words`, and end the process with `exit_code`."""

    def decorate(handler: Handler) -> Handler:
        def run(options: Options) -> int:
            try:
                return handler(options)
            except (MinirunError, OSError) as error:
                cause, fix = getattr(error, "cause", ""), getattr(error, "fix", "")
                message = f"{words}: {describe(error)}"
                raise Failed(message, exit_code, cause, fix) from error

        return run

    return decorate
