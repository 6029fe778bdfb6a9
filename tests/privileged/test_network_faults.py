"""The bridge network after kills, failures, deaths and races."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import network_hosts
import pytest
from network_hosts import ENVIRONMENT, HOOK, ROOT, Container, Host
from runtime import LIMIT, started, until

from minirun.network import address
from minirun.network.plan import Request, files, hooks, parse_publish

host = network_hosts.host
pytestmark = pytest.mark.requires("root", "netns", "nft")

# ---- crashes ----

# Every place where the kernel or the file has just been, or is about to be, changed.
STEPS = (
    "leases.Book.save", "veth.make_bridge", "veth.set_up", "firewall.apply", "veth.make_pair",
    "veth.label", "veth.add_default_route", "names.rewrite", "sysctl.put",
)  # fmt: skip
CRASH = """
import os, sys
from minirun.network import firewall, leases, names, sysctl, veth
from minirun.network.hook import main
step, when, action = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)
module, _, name = step.rpartition(".")
owner = eval(module)
real = getattr(owner, name)
calls = 0
def wrapped(*args, **kw):
    global calls
    calls += 1
    if calls > 1 and action == "raise":
        return real(*args, **kw)
    if when == "after":
        real(*args, **kw)
    if action == "kill":
        os.kill(os.getpid(), 9)
    raise OSError(5, "made to fail")
setattr(owner, name, wrapped)
sys.exit(main(sys.argv[1:]))
"""


def _broken(host: Host, container: Container, *how: str, verb: str = "attach") -> int:
    argument = (
        '{"publish":[{"hostPort":8080,"containerPort":80}]}' if verb == "attach" else "default"
    )
    argv = (sys.executable, "-c", CRASH, *how, verb, "--state-dir", host.state_dir, argument)
    return host.run(*argv, text=container.state(), check=False).returncode


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_killed_attach_is_undone_by_the_next(host: Host, step: str, when: str) -> None:
    web = host.container("web")
    assert _broken(host, web, step, when, "kill") == -signal.SIGKILL
    done = web.attach(publish=[{"hostPort": 8080, "containerPort": 80}])
    if step == "names.rewrite":  # all was done but the telling
        assert "already attached" in done.stderr
        host.attached("next").detach()
    else:
        assert (done.returncode, done.stderr) == (0, "")
    web.serve(80)
    assert host.ask("127.0.0.1", 8080) == "80 10.42.0.1"
    assert web.names()["web"] == web.ip
    assert len([one for one in host.links().values() if one.get("master") == "minirun0"]) == 1
    web.detach()
    host.assert_as_before()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failed_attach_leaves_nothing(host: Host, step: str, when: str) -> None:
    web = host.container("web")
    assert _broken(host, web, step, when, "raise") == 1
    host.assert_as_before()
    assert "eth0" not in web.links()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["veth.remove", "firewall.apply", "leases.Book.save"])
def test_a_killed_detach_can_be_repeated(host: Host, step: str, when: str) -> None:
    web = host.attached("web", publish=[{"hostPort": 8080, "containerPort": 80}])
    assert _broken(host, web, step, when, "kill", verb="detach") == -signal.SIGKILL
    assert web.detach().returncode == 0
    host.assert_as_before()


def test_containers_that_died_are_swept(host: Host) -> None:
    dead, web = host.attached("dead"), host.attached("web")
    value = dead.ip
    dead.kill()
    # The kernel takes the namespace down in its own time.
    until(lambda: address.link_name("default", "dead") not in host.links())
    expected = f"default: dead ({value}): its process is gone\n"
    assert host.gc("--dry-run") == "would release " + expected
    assert host.gc() == "released " + expected
    assert "dead" not in web.names()
    assert host.gc() == ""
    web.detach()
    host.assert_as_before()


PROGRAM = """
import os, socket
s = socket.create_server(("0.0.0.0", 80))
c, _ = s.accept()
c.sendall(repr([open(f"/etc/{n}").read() for n in ("hosts", "resolv.conf", "hostname")]).encode())
"""


@pytest.mark.requires("runc")
@pytest.mark.parametrize("runtime", [("runc",), (sys.executable, "-m", "minirun")])
def test_every_runtime_gives_the_same_network(host: Host, runtime: tuple[str, ...]) -> None:
    """The hooks and mounts are in the bundle: whoever runs it gets the container connected."""
    bundle = host.directory / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        if os.path.islink(f"/{name}"):
            (bundle / "rootfs" / name).symlink_to(os.readlink(f"/{name}"))
    program = host.directory / "minirun"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m minirun "$@"\n')
    program.chmod(0o755)
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    config = json.loads((bundle / "config.json").read_text())
    asked = Request(container="web", dns=("192.0.2.53",), publish=(parse_publish("8080:80"),))
    config["hooks"] = hooks(asked, str(program), host.state_dir)
    config["mounts"] += files(asked, str(bundle))
    config["mounts"] += [
        {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}
        for path in ("/usr", "/lib", "/lib64", "/bin")
        if not os.path.islink(path)
    ]
    config["process"].update(terminal=False, args=["/usr/bin/python3", "-ISc", PROGRAM])
    config["process"]["capabilities"]["bounding"].append("CAP_NET_BIND_SERVICE")
    config["process"]["capabilities"].pop("ambient", None)  # which are told of, not inheritable
    config["linux"].pop("resources", None)
    (bundle / "config.json").write_text(json.dumps(config))
    words = ("--root", str(host.directory / "root"), "run", "-b", str(bundle), "web")
    with started(
        host.command(*runtime, *words), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, env=ENVIRONMENT,
    ) as running:  # fmt: skip
        answer = "no:"
        while answer.startswith("no:") and running.poll() is None:
            answer = host.ask("127.0.0.1", 8080)
        assert "10.42.0.2\\tweb\\n" in answer
        assert "'nameserver 192.0.2.53\\n" in answer and "'web\\n'" in answer
        assert running.communicate(timeout=LIMIT)[1] == ""
    assert running.returncode == 0
    host.assert_as_before()


def test_a_flushed_ruleset_is_put_back(host: Host) -> None:
    web = host.attached("web", publish=[{"hostPort": 8080, "containerPort": 80}])
    web.serve(80)
    host.run("nft", "flush", "ruleset")
    assert host.refused("127.0.0.1", 8080)
    host.gc()
    assert host.ask("127.0.0.1", 8080).startswith("80 ")


def test_another_host_does_not_touch_what_is_not_there(host: Host, tmp_path: Path) -> None:
    web = host.attached("web")
    with Host(tmp_path) as other:
        done = other.hook("detach", "default", web.state())
        assert "the networks belong to another network namespace" in done.stderr
    assert host.inspect("web")["address"] == web.ip
    assert web.detach().returncode == 0
    host.assert_as_before()


# Emulated, each takes ten seconds of the CPU that it shares with the others, also while it holds
# the lock for which they wait a minute each.
PATIENT = f"from minirun.network import leases; leases.LOCK_TIMEOUT = 500; {HOOK}"


def test_eight_at_once_get_addresses_of_their_own(host: Host) -> None:
    names = [f"c{number}" for number in range(8)]
    containers = [host.container(name) for name in names]
    argv = [sys.executable, "-c", PATIENT, "attach", "--state-dir", host.state_dir]
    request = '{"publish":[{"containerPort":80}]}'

    def begun(words: Sequence[str]) -> list[subprocess.Popen[str]]:
        made = []
        for container in containers:
            process = subprocess.Popen(
                host.command(*words), stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=ENVIRONMENT,
            )  # fmt: skip
            assert process.stdin is not None
            process.stdin.write(container.state())
            process.stdin.close()
            process.stdin = None
            made.append(process)
        return made

    running = begun([*argv, request])
    assert [(process.communicate()[1], process.returncode) for process in running] == [("", 0)] * 8
    addresses = {container.ip for container in containers}
    ports = {host.inspect(name)["ports"][0]["hostPort"] for name in names}
    assert len(addresses) == len(ports) == 8
    assert set(names) <= set(containers[0].names())
    running = begun([*argv[:3], "detach", *argv[4:], "default"])
    assert [(process.communicate()[1], process.returncode) for process in running] == [("", 0)] * 8
    host.assert_as_before()


def test_the_hosts_file_is_rewritten_in_place(host: Host) -> None:
    web = host.container("web")
    before = os.stat(web.bundle / "hosts").st_ino
    web.attach()
    host.attached("db")
    assert os.stat(web.bundle / "hosts").st_ino == before
    victim = host.directory / "victim"
    victim.write_text("untouched")
    (web.bundle / "hosts").unlink()
    (web.bundle / "hosts").symlink_to(victim)
    host.attached("third")
    assert victim.read_text() == "untouched"
