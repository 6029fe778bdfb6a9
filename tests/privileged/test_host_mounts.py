"""Containers in the host's mount namespace: chroot, and nothing of them is left on the host."""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from runtime import call, good, mounts_of, read, until

if TYPE_CHECKING:
    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs", "unshare")


def mountinfo() -> list[str]:
    """Return the mounts that are here."""
    return read("/proc/self/mountinfo").splitlines()


@pytest.fixture
def shared(box: Box) -> Box:
    """A box whose container is in our mount namespace."""
    box.share("mount")
    for name in ("maskedPaths", "readonlyPaths"):
        box.linux[name] = []
    return box


def test_it_is_where_we_are(shared: Box) -> None:
    before = mountinfo()
    pid = shared.up()
    assert Path(f"/proc/{pid}/ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink()
    assert Path(f"/proc/{pid}/root").readlink() == shared.rootfs
    found = mounts_of(read("/proc/self/mountinfo"))
    top = str(shared.rootfs)
    assert {found[f"{top}{one}"].type for one in ("/proc", "/dev", "/sys")} == {
        "proc", "tmpfs", "sysfs"
    }  # fmt: skip
    good(shared.delete("--force"))
    assert mountinfo() == before


def test_hooks_and_runs_as_in_runcs_test(shared: Box) -> None:
    """tests/integration/host-mntns.bats"""
    before = mountinfo()
    shared.hook("createRuntime", "touch createRuntimeHook.$$")
    assert shared.sh("echo Hello World") == "Hello World"
    assert mountinfo() == before
    assert len(list(shared.bundle.glob("createRuntimeHook.*"))) == 1


def test_a_namespace_by_path_that_is_ours(shared: Box) -> None:
    before = mountinfo()
    shared.namespace("mount", f"/proc/{os.getpid()}/ns/mnt")
    shared.probe()
    assert mountinfo() == before


def test_exec_is_in_its_root(shared: Box) -> None:
    (shared.rootfs / "only-inside").write_text("inside\n")
    shared.up()
    assert good(shared.exec("cat", "/only-inside")).out == "inside\n"
    assert shared.exec_probe()["cwd"] == "/"
    # From elsewhere too, where the container's mount namespace has to be joined.
    shared.command = ["unshare", "--mount", *shared.command]
    assert good(shared.exec("cat", "/only-inside")).out == "inside\n"


def test_a_read_only_root(shared: Box) -> None:
    """runc ignores it here, or refuses: what is read-only is our own mount."""
    shared.config["root"]["readonly"] = True
    assert "Read-only file system" in shared.sh("touch /file 2>&1 || true")
    (shared.rootfs / "file").write_text("writable again\n")


@pytest.mark.parametrize("field", ["maskedPaths", "readonlyPaths"])
def test_paths_to_hide_need_a_namespace(shared: Box, field: str) -> None:
    shared.linux[field] = ["/proc/kcore"]
    shared.refused("unable to restrict sys entries without a private MNT namespace")


def test_what_would_change_the_host(shared: Box) -> None:
    before = mountinfo()
    shared.refused("--no-pivot needs a mount namespace", flags=["--no-pivot"])
    shared.linux["rootfsPropagation"] = "private"
    shared.refused("linux.rootfsPropagation: needs a mount namespace")
    del shared.linux["rootfsPropagation"]
    shared.config["root"]["path"] = "/"
    shared.refused("root.path: / needs a mount namespace")
    shared.config["root"]["path"] = "rootfs"
    shared.user_namespace()
    shared.refused("a user namespace needs a mount namespace")
    assert mountinfo() == before


def in_a_shared_tree(box: Box, script: str, *words: str) -> str:
    """Run a script in a mount namespace whose mounts are all shared, the bundle at /mnt/bundle.

    Its arguments are the words of a detached run of the box there.
    """
    prepare = "mount -t tmpfs none /mnt && mount --make-rshared / && cp -a $0 /mnt/bundle && "
    box.process["args"] = ["/bin/sleep", "600"]
    box.write()
    run = box.words("run", "--detach", "--bundle", "/mnt/bundle", box.id)
    shell = ["unshare", "--mount", "sh", "-euc", prepare + script, str(box.bundle)]
    return good(call([*shell, *(words or run)])).out


def test_the_hosts_propagation_stays(shared: Box) -> None:
    """runc before 1.5.3 made all of the host's mounts slaves, and the one of the bundle private."""
    shown = "cut -d ' ' -f 5- /proc/self/mountinfo"
    delete = shlex.join(shared.words("delete", "--force", shared.id))
    done = in_a_shared_tree(shared, f'{shown}; "$@"; {delete}; echo; {shown}')
    before, after = done.split("\n\n")
    assert before.strip() == after.strip()
    assert before.count(" shared:") > 5


def test_no_other_namespace_sees_what_is_in_it(shared: Box) -> None:
    """Where the bundle's mount is shared the bind is seen elsewhere, what is mounted on it not."""
    delete = shlex.join(shared.words("delete", "--force", shared.id))
    shown = "cut -d ' ' -f 5 /proc/$other/mountinfo"
    script = (
        "unshare --mount --propagation slave sleep 600 & other=$!; "
        "until grep -q sleep /proc/$other/comm; do sleep 0.05; done; "
        f'"$@"; cut -d " " -f 5 /proc/self/mountinfo; echo; {shown}; {delete}; echo; {shown}; '
        "kill $other"
    )
    done = in_a_shared_tree(shared, script)
    ours, during, after = (part.split("\n") for part in done.split("\n\n"))
    assert "/mnt/bundle/rootfs/proc" in ours
    assert "/mnt/bundle/rootfs/proc" not in during
    assert "/mnt/bundle/rootfs" not in after


@pytest.mark.parametrize("step", ["hook", "payload", "mount"])
def test_a_creation_that_fails_leaves_nothing(shared: Box, step: str) -> None:
    before = mountinfo()
    if step == "hook":
        shared.hook("createContainer", "exit 1")
    elif step == "payload":
        shared.process["args"] = ["/none"]
    else:
        shared.mount("/vol", str(shared.place / "none"), "bind")
    shared.refused()
    assert mountinfo() == before


def test_a_creation_that_is_killed(shared: Box) -> None:
    """The bind is recorded before it is there: delete undoes it."""
    before = mountinfo()
    shared.hook("createRuntime", "kill -9 $PPID")
    assert shared.run().code == -signal.SIGKILL
    assert mountinfo() != before
    good(shared.delete("--force"))
    assert mountinfo() == before


def test_one_root_one_container(shared: Box) -> None:
    before = mountinfo()
    shared.up()
    other = shared.another()
    other.config = {**shared.config, "root": {"path": str(shared.rootfs)}}
    message = other.refused("root.path")
    assert shared.id in message
    good(shared.delete("--force"))
    assert mountinfo() == before


def test_the_end_of_a_process_leaves_the_mounts_to_delete(shared: Box) -> None:
    before = mountinfo()
    pid = shared.up()
    os.kill(pid, signal.SIGKILL)
    until(lambda: shared.state()["status"] == "stopped")
    good(shared.delete())
    assert mountinfo() == before


def test_what_is_not_ours_stays(shared: Box) -> None:
    """Unmounted by hand, and another mount in its place: that one is the user's."""
    before = mountinfo()
    shared.up()
    good(call(["umount", "--recursive", "--lazy", str(shared.rootfs)]))
    good(call(["mount", "-t", "tmpfs", "tmpfs", str(shared.rootfs)]))
    try:
        good(shared.delete("--force"))
        assert str(shared.rootfs) in mounts_of(read("/proc/self/mountinfo"))
    finally:
        good(call(["umount", str(shared.rootfs)]))
    assert mountinfo() == before


def test_a_terminal_and_every_namespace_the_hosts(shared: Box) -> None:
    """runtime-tools' linux_ns_itype: none of the namespaces is new."""
    before = mountinfo()
    shared.share("pid", "network", "ipc", "uts", "mount")
    del shared.config["hostname"]
    pid = shared.up()
    for name in ("mnt", "pid", "net", "ipc", "uts"):
        ours, theirs = (Path(f"/proc/{one}/ns/{name}").readlink() for one in ("self", pid))
        assert ours == theirs
    good(shared.delete("--force"))
    assert mountinfo() == before


def test_the_plan_tells_it(shared: Box) -> None:
    shared.write()
    done = good(shared.call("plan", "--bundle", str(shared.bundle)))
    assert "mounts.bind_root_outside" in done.out
    assert "mounts.change_root" in done.out
    for absent in ("mounts.pivot_root", "mounts.stop_propagation", "mounts.bind_root\n"):
        assert absent not in done.out
    refused = shared.call("plan", "--shell", "--bundle", str(shared.bundle))
    assert refused.code == 1
    assert "no script can do it" in refused.err


def test_it_cannot_be_checkpointed(shared: Box) -> None:
    shared.up()
    done = shared.call("checkpoint", "--image-path", str(shared.place / "image"), shared.id)
    assert done.code == 1
    assert "a container in the host's mount namespace cannot be checkpointed" in done.err


def test_sources_in_the_root(shared: Box) -> None:
    before = mountinfo()
    shared.mount("/vol", "tmpfs", "mode=755", kind="tmpfs")
    shared.mount("/tmp", "rootfs/vol", "bind")
    assert shared.sh("echo same > /vol/file && cat /tmp/file") == "same"
    assert mountinfo() == before
