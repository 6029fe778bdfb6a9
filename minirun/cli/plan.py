"""plan: what making a container would do, before it is done."""

from __future__ import annotations

import os

import click

from minirun import jsontext, making, plan, state
from minirun.cli.place import state_root
from minirun.grammar import Options
from minirun.setup import Launch, Setup
from minirun.spec import Process


@click.command("plan")
@click.argument("container", required=False)
@click.option("-b", "--bundle", metavar="DIR", help="The bundle to plan (default: here).")
@click.option("--json", "as_json", is_flag=True, help="Print the steps as JSON.")
@click.option("--shell", "as_shell", is_flag=True, help="Print a script that builds the like.")
@click.pass_obj
def command(
    options: Options, container: str | None, bundle: str | None, as_json: bool, as_shell: bool
) -> None:
    """Print the steps that make a container of a bundle, or that made CONTAINER.

    The steps are those that `create` follows; nothing is done.
    """
    setup = _of_container(options, container) if container else _of_bundle(options, bundle)
    if as_json:
        click.echo(jsontext.dumps(plan.steps_of(setup), "  "))
    else:
        click.echo(plan.shell_of(setup) if as_shell else plan.text_of(setup), nl=False)


def _of_bundle(options: Options, bundle: str | None) -> Setup:
    path = bundle or "."
    name = os.path.basename(os.path.realpath(path)) or "container"
    launch = Launch(
        path,
        systemd_cgroup=options.systemd_cgroup,
        no_cgroup=options.cgroup_manager == "disabled",
    )
    setup, _text = making.prepare(name, launch)
    return setup


def _of_container(options: Options, cid: str) -> Setup:
    with state.load(state_root(options), cid) as container:
        spec = container.spec
        saved = container.saved
    launch = Launch(saved.bundle, systemd_cgroup=saved.systemd_unit is not None)
    setup = Setup(cid, spec, spec.process or Process(), saved.bundle, launch)
    setup.root_path = saved.rootfs
    setup.own_mounts = saved.root_mount is None
    return setup
