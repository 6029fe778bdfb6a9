"""virt: what this machine is, and which machines it can run."""

from __future__ import annotations

import os
import sys

import click

from minirun import __version__, log
from minirun.cli.human import refusal
from minirun.errors import MinirunError
from minirun.jsontext import dumps
from minirun.virt import document, explain, layers
from minirun.virt.collect import collect
from minirun.virt.decide import decide
from minirun.virt.verdict import UNKNOWN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.virt.facts import Facts
    from minirun.virt.host import Host
    from minirun.virt.verdict import Verdict

_MISUSED = 2


class _Refused(MinirunError):
    """What was asked for cannot be done; never the 1 that is the "no" of --is."""

    exit_code = _MISUSED


class _Virt(click.Command):
    """Ends with 2 when it is misused: 1 is the "no" of --is."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            log.error(refusal(error))
            ctx.exit(_MISUSED)


@click.command("virt", cls=_Virt)
@click.option("--json", "as_json", is_flag=True, help="print JSON (its schema: --schema)")
@click.option("--facts", "show_facts", is_flag=True, help="print every fact with its source")
@click.option(
    "--explain",
    "topic",
    type=click.Choice(sorted(explain.TOPICS)),
    help="explain something with this machine's values",
)
@click.option(
    "--is",
    "kind",
    type=click.Choice(layers.KINDS),
    help="answer yes (0), no (1) or unknown (14): is this a virtual machine, a container, a "
    "confidential guest (cvm); do guests run under KVM at the CPU's speed (kvm); is this a virtual "
    "machine that may have its own (nested)",
)
@click.option("-q", "--quiet", is_flag=True, help="with --is: print nothing")
@click.option("--schema", is_flag=True, help="print the JSON schema of --json")
@click.option("--no-probe", is_flag=True, help="run no guest")
@click.option("--record", metavar="DIR", help="write what was read to DIR, nothing personal in it")
@click.option("--fixture", metavar="DIR", help="report on a machine that was recorded in DIR")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    as_json: bool,
    show_facts: bool,
    topic: str | None,
    kind: str | None,
    quiet: bool,
    schema: bool,
    no_probe: bool,
    record: str | None,
    fixture: str | None,
) -> None:
    """Tell what this machine is and what it can run: hypervisor, container, KVM, with proof.

    A tiny guest is run in a process of its own for a few milliseconds. Nothing is changed, no
    program is started, nothing is asked of a network. The exit status is the verdict's.
    """
    if schema:
        click.echo(document.schema(), nl=False)
        return
    if record and fixture:
        raise _Refused("flags --record and --fixture exclude each other")
    host = _host(fixture, not no_probe, bool(record))
    facts = collect(host)
    verdict = decide(facts)
    if record:
        _record(record, host, facts, verdict)
    if kind:
        ctx.exit(_is(kind, facts, verdict, quiet))
    if topic:
        click.echo(explain.text(topic, facts, verdict), nl=False)
    elif show_facts:
        _echo("".join(_fact(facts)))
    elif as_json:
        click.echo(dumps(document.document(facts, verdict), "  "))
    else:
        from minirun.virt.report import report

        _echo(report(facts, verdict, __version__))
    if not topic and not show_facts:
        ctx.exit(verdict.status)


def _host(fixture: str | None, probe: bool, record: bool) -> Host:
    if fixture:
        from minirun.virt.fixture import load

        return load(fixture)
    from minirun.virt.host import RealHost

    host = RealHost(probe)
    if record:
        from minirun.virt.recording import Recorder

        return Recorder(host)
    return host


def _record(directory: str, host: Host, facts: Facts, verdict: Verdict) -> None:
    from minirun.virt.recording import Recorder, save

    assert isinstance(host, Recorder)
    expected = {
        "code": verdict.code,
        "exit": verdict.status,
        "layers": [[one["kind"], one["name"]] for one in layers.layers(facts)],
    }
    try:
        save(directory, host, expected)
    except OSError as error:
        raise _Refused(f"{directory}: {os.strerror(error.errno or 0).lower()}") from None
    except MinirunError as error:
        raise _Refused(error.message, cause=error.cause, fix=error.fix) from None


def _is(kind: str, facts: Facts, verdict: Verdict, quiet: bool) -> int:
    answer, why = layers.question(kind, facts, verdict)
    if not quiet:
        _echo({True: "yes", False: "no", None: f"unknown ({why})"}[answer] + "\n")
    return {True: 0, False: 1, None: UNKNOWN}[answer]


def _fact(facts: Facts) -> list[str]:
    lines = []
    for fact in facts:
        value = f"unknown ({fact.why})" if fact.value is None else dumps(fact.value)
        lines.append(f"{fact.name} = {value}  [{fact.source}]\n")
    return lines


def _echo(text: str) -> None:
    """Keep a terminal from obeying what a machine's firmware says."""
    if sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    click.echo(text, nl=False)
