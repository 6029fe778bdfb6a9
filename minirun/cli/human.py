"""The verbs for people, made with click: their group, and completion for all verbs.

A verb's own module is loaded when it is called. Its click command finds the global options (an
`Options`: root, debug, systemd_cgroup …) as the context's object (`@click.pass_obj`).
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from minirun import log
from minirun.errors import MinirunError, UsageError, similar
from minirun.grammar import FLAG, LIST, NUMBER, Option, Options, Verb
from minirun.options import GLOBALS, HUMAN, VERBS

COMPLETE = "_MINIRUN_COMPLETE"


def run(argv: Sequence[str], options: Options) -> int:
    """Run a verb for people; `argv` starts with its name. Return the exit status.

    Raises MinirunError as every verb does.
    """
    gc.enable()  # off since the start: see launcher.start
    shell_request = os.environ.pop(COMPLETE, None)
    if shell_request is not None:
        return _complete(shell_request)
    try:
        result = group().main(list(argv), prog_name="minirun", standalone_mode=False, obj=options)
    except click.exceptions.Abort:
        return 128 + 2
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        return _click_failed(error)
    return result if isinstance(result, int) else 0


def _click_failed(error: click.ClickException) -> int:
    log.error(refusal(error))
    return 1


def refusal(error: click.ClickException) -> UsageError:
    """Say an error of click's as ours are: one line, and what may have been meant as its fix."""
    text = " ".join(error.format_message().split())
    message, _, close = text.partition("Did you mean ")
    head, listed, _ = text.partition(" is not one of ")
    kind = getattr(getattr(error, "param", None), "type", None)
    if listed and isinstance(kind, click.Choice):
        meant = similar(head.rpartition(": ")[2].strip("'"), kind.choices)
    else:
        meant = f"did you mean {close.rstrip(')')}" if close else ""
    context = getattr(error, "ctx", None)
    more = f"see {context.command_path} --help" if context is not None else ""
    message = message.rstrip(" .(")
    return UsageError(message[:1].lower() + message[1:], fix=f"{meant} {more}".strip())


class _Lazy(click.Group):
    """A group whose commands are loaded when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS, *HUMAN]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in VERBS:
            return command(VERBS[name])
        if name not in HUMAN:
            return None
        module, _, attribute = HUMAN[name][1].partition(":")
        try:
            __import__(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise MinirunError(f"command {name} is not supported yet") from None
        found: click.Command = getattr(sys.modules[module], attribute)
        return found


def group() -> click.Group:
    """Make the whole program as a click group, from the tables of options."""
    params = [_parameter(option) for option in GLOBALS if option.key != "help"]
    return _Lazy("minirun", params=params, callback=lambda **_: None)


def command(verb: Verb) -> click.Command:
    """Make a click command of an engine's verb, for completion; it is never invoked."""
    arguments: list[click.Parameter] = []
    if verb.most != 0:
        arguments = [_Container(["container"]), click.Argument(["arguments"], nargs=-1)]
    options = [_parameter(option) for option in verb.options]
    return click.Command(verb.name, params=[*options, *arguments], help=verb.summary)


def _parameter(option: Option) -> click.Parameter:
    names = [f"{'-' if len(name) == 1 else '--'}{name}" for name in option.names]
    kind: Any = click.STRING
    if option.choices:
        kind = click.Choice(option.choices)
    elif option.kind == NUMBER:
        kind = click.INT
    elif option.metavar in ("FILE", "SOCKET", "PATH"):
        kind = click.Path()
    elif option.metavar == "DIR":
        kind = click.Path(file_okay=False)
    return click.Option(
        names,
        type=None if option.kind == FLAG else kind,
        is_flag=option.kind == FLAG,
        multiple=option.kind == LIST,
        help=option.help,
        hidden=option.hidden,
        shell_complete=_complete_rootfs if option.key == "rootfs" else None,
    )


def _complete_rootfs(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete the names that `rootfs list` has, or else a directory."""
    from minirun.rootfs import store

    try:
        names = store.names(store.base_directory(store.data_directory(None, os.environ)))
    except MinirunError:
        names = []
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="dir")]


class _Container(click.Argument):
    """The ID of a container; completes the IDs under the state directory."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from minirun.cli.place import default_root

        above = ctx.parent.params if ctx.parent is not None else {}
        try:
            names = sorted(os.listdir(above.get("root") or default_root()))
        except OSError:
            return []
        # What is hidden there is no container: those of the network, compiled filters.
        found = [name for name in names if name.startswith(incomplete) and name[0] != "."]
        return [CompletionItem(name) for name in found]


def _complete(request: str) -> int:
    """Answer the shell's completion script, which asks `bash_complete` and the like."""
    from click.shell_completion import shell_complete

    return shell_complete(group(), {}, "minirun", COMPLETE, request)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    For bash: minirun completion bash > /etc/bash_completion.d/minirun
    """
    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(group(), {}, "minirun", COMPLETE).source())
