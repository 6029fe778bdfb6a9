"""The grammar of the command line: what an option and a verb are, and how words are read as them.

The tables are in `minirun.options`.
"""

from __future__ import annotations

from minirun.errors import MinirunError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

FLAG, TEXT, NUMBER, LIST = "flag", "text", "number", "list"


class Option:
    """One option. `needs_rootfs` marks those that only mean something with --rootfs."""

    needs_rootfs = False

    def __init__(
        self,
        names: str,
        kind: str,
        help: str,
        metavar: str = "value",
        *,
        default: int | str | None = None,
        choices: tuple[str, ...] = (),
        hidden: bool = False,
    ) -> None:
        self.names = tuple(names.split())
        self.key = self.names[0].replace("-", "_")
        self.kind = kind
        self.help = help
        self.metavar = metavar
        self.default = default
        self.choices = choices
        self.hidden = hidden

    def absent(self) -> bool | int | str | tuple[str, ...] | None:
        """Return the value that the option has when it is not given."""
        if self.kind == FLAG:
            return False
        return () if self.kind == LIST else self.default

    def spellings(self) -> str:
        """Render the names as the help shows them: `--bundle value, -b value`."""
        tail = "" if self.kind == FLAG else f" {self.metavar}"
        return ", ".join([f"{'-' if len(n) == 1 else '--'}{n}{tail}" for n in self.names])


HELP = Option("help h", FLAG, "show this help")


class RootfsOption(Option):
    """An option of `run` and `create` that only means something with --rootfs."""

    needs_rootfs = True


class Verb:
    """One verb: what it takes, and where its function is (`module:function`, loaded when called).

    `usage` names the positionals, one line for each way to call it; between `least` and `most` of
    them (None: any number) are accepted. With `stop`, everything after the first positional is
    passed on as it is.
    """

    def __init__(
        self,
        name: str,
        summary: str,
        usage: str,
        handler: str,
        options: tuple[Option, ...] = (),
        *,
        details: str = "",
        least: int = 1,
        most: int | None = 1,
        stop: bool = False,
    ) -> None:
        self.name = name
        self.summary = summary
        self.usage = usage
        self.handler = handler
        self.options = options
        self.details = details
        self.least = least
        self.most = most
        self.stop = stop


class Options:
    """What a command line asks for; see the module's docstring."""

    def __init__(
        self, verb: str, values: dict[str, Any], given: frozenset[str], args: tuple[str, ...]
    ) -> None:
        self.__dict__.update(values)
        self.verb = verb
        self.args = args
        self._given = given

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def given(self, name: str) -> bool:
        """Tell whether the option (by either spelling, `pids-limit` or `pids_limit`) was typed."""
        return name.replace("-", "_") in self._given


class Reader:
    """Reads options of one table off a list of arguments."""

    def __init__(self, table: Sequence[Option]) -> None:
        self.by_name = {name: option for option in table for name in option.names}
        self.values: dict[str, Any] = {option.key: option.absent() for option in table}
        self.seen: set[str] = set()

    def read(self, argv: list[str], stop: Callable[[], bool]) -> list[str]:
        """Read options; return the positionals.

        After a positional, when `stop()` says so, all that follows is positional.
        """
        args: list[str] = []
        left = argv[::-1]
        while left:
            word = left.pop()
            if word == "--":
                return args + left[::-1]
            if len(word) < 2 or word[0] != "-":
                args.append(word)
                if stop():
                    return args + left[::-1]
                continue
            self._option(word, left)
        return args

    def _option(self, word: str, left: list[str]) -> None:
        name, equals, value = word[2 if word.startswith("--") else 1 :].partition("=")
        option = self.by_name.get(name)
        if option is None:
            return self._bundled(word, name, equals, left)
        if equals:
            return self._set(option, value)
        if option.kind == FLAG:
            return self._set(option, "true")
        if not left:
            raise UsageError(f"flag needs an argument: {word}")
        return self._set(option, left.pop())

    def _bundled(self, word: str, name: str, equals: str, left: list[str]) -> None:
        """Read `-it` as `-i -t`; the last one may take a value."""
        options = [self.by_name.get(char) for char in name]
        known = [option for option in options if option is not None]
        flags = all(option.kind == FLAG for option in known[:-1])
        if word.startswith("--") or equals or not flags or len(known) != len(name) or not known:
            raise UsageError(f"flag provided but not defined: -{name}")
        for char in name:
            self._option(f"-{char}", left)

    def _set(self, option: Option, value: str) -> None:
        self.seen.add(option.key)
        if option.kind == FLAG:
            self.values[option.key] = boolean(value, option.names[0])
        elif option.kind == NUMBER:
            self.values[option.key] = _number(value, option.names[0])
        elif option.kind == LIST:
            self.values[option.key] += (value,)
        elif option.choices and value not in option.choices:
            raise UsageError(f"invalid {option.names[0]} option")
        else:
            self.values[option.key] = value


def boolean(value: str, name: str) -> bool:
    """Read a flag's value as Go's strconv.ParseBool does. Raises UsageError."""
    if value in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if value in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise UsageError(f'invalid value "{value}" for flag -{name}: not a boolean')


def _number(value: str, name: str) -> int:
    digits = value[1:] if value[:1] == "-" else value
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise UsageError(f'invalid value "{value}" for flag -{name}: not a whole number')
    return int(value)


def read_verb(verb: Verb, above: dict[str, Any], argv: list[str]) -> Options:
    """Read what follows a verb; `above` are the values of the options that stood before it.

    Raises UsageError, and MinirunError for flags that do not go together.
    """
    reader = Reader((*verb.options, HELP))
    both = "rootfs" in reader.values
    args = reader.read(argv, lambda: verb.stop or (both and reader.values["rootfs"] is not None))
    if len(args) > 2 and args[1] == "--":
        del args[1]  # `exec ID -- command`: they part our options from the command's
    values = {**above, **reader.values}
    options = Options(verb.name, values, frozenset(reader.seen), tuple(args))
    if values["help"]:
        return options
    if both:
        _check_rootfs(verb, options)
    _check_count(verb, options)
    return options


def _check_rootfs(verb: Verb, options: Options) -> None:
    if options.rootfs is None:
        for option in verb.options:
            if option.needs_rootfs and options.given(option.key):
                raise MinirunError(
                    f"flag --{option.names[0]} needs --rootfs",
                    cause="a bundle's config.json says this itself",
                )
        return
    for name in ("bundle", "config"):
        if getattr(options, name) is not None:
            raise MinirunError(f"flags --{name} and --rootfs exclude each other")


def _check_count(verb: Verb, options: Options) -> None:
    most = 1 if verb.most is None and getattr(options, "rootfs", "") is None else verb.most
    count = len(options.args)
    if verb.least <= count and (most is None or count <= most):
        return
    which = "a minimum of" if count < verb.least else "a maximum of"
    bound = verb.least if count < verb.least else most
    if verb.least == most:
        which = "exactly"
    fix = ""
    if verb.most is None and most == 1 < count:
        fix = "a command after the ID goes with --rootfs NAME; a bundle has its own in config.json"
    raise UsageError(f'"{verb.name}" requires {which} {bound} argument(s)', fix=fix)
