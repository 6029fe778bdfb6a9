"""What `virt` concludes of described machines, and that what it cannot read is never a no."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minirun import cli
from minirun.virt import child, cpuid, document, explain, paravirt
from minirun.virt.collect import collect
from minirun.virt.decide import decide
from minirun.virt.extensions import named
from minirun.virt.facts import Facts, Unknown
from minirun.virt.fixture import FixtureError, FixtureHost, load
from minirun.virt.host import LOG_WORDS, Host, RealHost
from minirun.virt.layers import KINDS, layers, question
from minirun.virt.recording import Recorder, save, scrubbed
from minirun.virt.report import WIDTH, report

MACHINES = Path(__file__).parents[1] / "fixtures" / "virt"
NAMES = sorted(path.parent.name for path in MACHINES.glob("*/expect.json"))
PACKAGE = Path(document.__file__).parent
TABLES = ("files", "names", "status", "ask")
Tables = dict[str, dict[str, Any]]


@cache
def tables(name: str) -> Tables:
    return load(str(MACHINES / name)).tables


@cache
def facts(name: str) -> Facts:
    return collect(load(str(MACHINES / name)))


@cache
def parts(name: str) -> tuple[tuple[str, str], ...]:
    """Everything that the report asks of a machine, whether it is there or not."""
    recorder = Recorder(FixtureHost(tables(name)))
    collect(recorder)
    return tuple(
        (table, key)
        for table in TABLES
        for key in sorted({*recorder.tables[table], *tables(name)[table]})
    )


def answers(found: Facts) -> dict[str, bool | None]:
    verdict = decide(found)
    return {kind: question(kind, found, verdict)[0] for kind in KINDS}


# ---------------------------------------------------------------- what is concluded


@pytest.mark.parametrize("name", NAMES)
def test_the_conclusion(name: str) -> None:
    expected = json.loads((MACHINES / name / "expect.json").read_text())
    found = facts(name)
    verdict = decide(found)
    assert (verdict.code, verdict.status) == (expected["code"], expected["exit"])
    assert [[one["kind"], one["name"]] for one in layers(found)] == expected["layers"]
    assert {key: found.get(key) for key in expected.get("facts", {})} == expected.get("facts", {})
    given_answers = answers(found)
    assert {kind: given_answers[kind] for kind in expected.get("is", {})} == expected.get("is", {})
    if "fixes" in expected:
        assert [fix.name for fix in verdict.fixes] == expected["fixes"]


@pytest.mark.parametrize("name", NAMES)
def test_the_texts(name: str) -> None:
    found = facts(name)
    verdict = decide(found)
    text = report(found, verdict, "1")
    assert max(map(len, text.splitlines())) <= WIDTH
    assert f"({verdict.code})" in text and "None" not in text
    for topic in explain.TOPICS:
        told = explain.text(topic, found, verdict)
        assert "here:" in told and "None" not in told
        assert max(map(len, told.splitlines())) <= WIDTH


@pytest.mark.parametrize("name", NAMES)
def test_the_document_is_of_the_schema(name: str) -> None:
    schema = json.loads(document.schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    made = json.loads(json.dumps(document.document(facts(name), decide(facts(name)))))
    jsonschema.Draft202012Validator(schema).validate(made)


def test_every_code_is_in_the_schema_and_every_other_is_nobodys() -> None:
    schema = json.loads(document.schema())["properties"]["verdict"]["properties"]
    used = {
        node.args[0].value
        for path in PACKAGE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "Verdict"
        and isinstance(node.args[0], ast.Constant)
    }
    assert used == set(schema["code"]["enum"])
    shown = {decide(facts(name)).code for name in NAMES}
    # These two come of odd answers that no known machine gives.
    assert used - shown <= {"KVM_REFUSES", "PERM_ACL"}


# ---------------------------------------------------------------- unknown is not no

REFUSALS = st.sampled_from(["EACCES", "EPERM", "EIO", "ENODEV"])


def without(found: Tables, changes: dict[tuple[str, str], Any]) -> Tables:
    copy = {table: dict(rows) for table, rows in found.items()}
    for (table, key), value in changes.items():
        copy[table][key] = value
    return copy


# What is said there changes with what is seen, and decides nothing.
TEXTS = {"machine.evidence", "host.vfio", "host.vhost-net", "host.vhost-vsock"}


def says_no(value: Any) -> bool:
    """Whether a fact that is no bool says that there is nothing."""
    return value in ("", [], {}) or (isinstance(value, str) and value.startswith(("no", "shadow")))


def check_less(name: str, host: Host) -> None:
    """A machine of which less can be read: nothing raises, no answer turns into its opposite."""
    whole, found = facts(name), collect(host)
    verdict = decide(found)
    json.dumps(document.document(found, verdict))
    report(found, verdict, "1")
    for fact in found:
        was = whole.get(fact.name)
        if isinstance(was, bool) and fact.value is not None:
            assert fact.value == was, f"{fact.name}: {was} became {fact.value}"
        if fact.name not in TEXTS and was is not None and says_no(fact.value):
            assert says_no(was), f"{fact.name}: {was} became {fact.value}"
        assert fact.value is not None or fact.why, f"{fact.name} is unknown without a reason"
    before, after = answers(whole), answers(found)
    for kind, answer in after.items():
        if kind != "kvm":  # an open device is what that is about: see below
            assert answer in (None, before[kind]), f"--is {kind}: {before[kind]} became {answer}"
    if before["kvm"] is not True:
        assert after["kvm"] is not True


@pytest.mark.parametrize("name", NAMES)
def test_one_part_is_refused(name: str) -> None:
    for part in parts(name):
        check_less(name, FixtureHost(without(tables(name), {part: {"errno": "EACCES"}})))


@given(data=st.data(), name=st.sampled_from(NAMES))
def test_any_parts_are_refused(data: st.DataObject, name: str) -> None:
    chosen = data.draw(st.sets(st.sampled_from(parts(name)), max_size=30))
    changes = {part: {"errno": data.draw(REFUSALS)} for part in chosen}
    check_less(name, FixtureHost(without(tables(name), changes)))


@pytest.mark.parametrize("tree", ["/proc", "/sys", "/dev", "/sys/firmware", "/sys/class", "/lib"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_system_is_not_mounted(name: str, tree: str) -> None:
    found = tables(name)
    gone = {
        (table, key): None
        for table in ("files", "names", "status")
        for key in found[table]
        if key == tree or key.startswith(tree + "/")
    }
    check_less(name, FixtureHost(without(found, gone)))


COVERED = ("/sys", "/sys/module", "/sys/firmware", "/sys/class", "/sys/class/dmi/id", "/sys/bus",
           "/sys/bus/acpi/devices", "/sys/kernel/mm", "/proc/device-tree")  # fmt: skip


@pytest.mark.parametrize("tree", COVERED)
@pytest.mark.parametrize("name", NAMES)
def test_a_directory_is_covered_by_an_empty_one(name: str, tree: str) -> None:
    """As runtimes do with what tells of the host: what was below is not absent, but unknown."""
    found = tables(name)
    gone: dict[tuple[str, str], Any] = {
        (table, key): None
        for table in ("files", "names", "status")
        for key in found[table]
        if key.startswith(tree + "/")
    }
    if tree in found["names"] or tree in found["status"] or gone:
        check_less(name, FixtureHost(without(found, {**gone, ("names", tree): []})))


@given(data=st.data(), name=st.sampled_from(NAMES))
def test_any_parts_are_missing(data: st.DataObject, name: str) -> None:
    """Absence can mean something: only that nothing raises, and each unknown has a reason."""
    chosen = data.draw(st.sets(st.sampled_from(parts(name)), max_size=30))
    found = collect(FixtureHost(without(tables(name), dict.fromkeys(chosen))))
    assert all(fact.why for fact in found if fact.value is None)
    assert report(found, decide(found), "1")
    answers(found)


JUNK: st.SearchStrategy[Any] = st.one_of(
    st.text(max_size=20),
    st.lists(st.text(max_size=5), max_size=3),
    st.integers(),
    st.dictionaries(st.text(max_size=5), st.one_of(st.none(), st.integers(), st.text(max_size=5))),
)


@given(data=st.data(), name=st.sampled_from(NAMES))
def test_any_file_holds_nonsense(data: st.DataObject, name: str) -> None:
    files = [part for part in parts(name) if part[0] == "files"]
    chosen = data.draw(st.sets(st.sampled_from(files), max_size=10))
    junk = st.one_of(st.text(max_size=40), st.binary(max_size=40).map(lambda b: {"hex": b.hex()}))
    changes = {part: data.draw(junk) for part in chosen}
    found = collect(FixtureHost(without(tables(name), changes)))
    assert report(found, decide(found), "1")


@pytest.mark.parametrize("name", NAMES)
def test_a_marker_file_makes_no_container(name: str) -> None:
    marked = without(tables(name), {("files", "/.dockerenv"): "", ("status", "/.dockerenv"): {}})
    assert collect(FixtureHost(marked)).get("container.inside") == facts(name).get(
        "container.inside"
    )


# ---------------------------------------------------------------- the seam


def test_only_the_seam_reads_the_machine() -> None:
    may = {"host", "child", "cpuid", "kvmdevice", "guest", "fixture", "recording", "document"}
    for path in PACKAGE.glob("*.py"):
        tree = ast.parse(path.read_text())
        names = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not names & {"socket", "subprocess", "urllib", "http"}, path.name
        if path.stem in may:
            continue
        assert "os" not in names, path.name
        calls = [ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)]
        assert "open" not in calls, path.name


def test_the_log_is_filtered_by_what_is_looked_for() -> None:
    for _name, words in paravirt._IN_USE:
        assert any(kept in words for kept in LOG_WORDS), words


def test_this_machine_is_described_without_a_guest() -> None:
    found = collect(RealHost(probe=False))
    assert found.get("probe.ring0") is None and "--no-probe" in found.why("probe.ring0")
    assert found.get("system.machine") == os.uname().machine
    decide(found)


def test_this_machines_description_answers_alike(tmp_path: Path) -> None:
    recorder = Recorder(RealHost())
    live = collect(recorder)
    save(str(tmp_path / "new"), recorder, {"code": decide(live).code})
    again = collect(load(str(tmp_path / "new")))
    private = ("system.ids", "firmware.dmi", "machine.evidence")
    for fact in live:
        assert fact.name in private or again.get(fact.name) == fact.value, fact.name
    kept = (tmp_path / "new" / "host.json").read_text()
    for word in _private():
        assert word not in kept, word


def _private() -> list[str]:
    """What names this machine, as far as anybody may read it."""
    found = [os.uname().nodename]
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        if os.path.exists(path):
            found.append(Path(path).read_text().strip())
    found += [place.read_text().strip() for place in Path("/sys/class/net").glob("*/address")]
    return [word for word in found if len(word) > 3 and word != "00:00:00:00:00:00"]


def test_what_is_kept_of_files() -> None:
    assert scrubbed("/etc/shadow", b"root:x") is None
    line = b"BOOT_IMAGE=/vmlinuz root=UUID=1234 nomodule password=x kvm.nested=1"
    assert scrubbed("/proc/cmdline", line) == "nomodule kvm.nested=1"
    assert scrubbed("/proc/self/environ", b"HOME=/x\0container=lxc\0A=b") == "container=lxc"
    assert scrubbed("/sys/class/dmi/id/product_name", b"Secret Project 7") == "(another)"
    rows = b"processor: 0\nvendor_id: GenuineIntel\nserial: 77\nflags: vmx\n\nvendor_id: X"
    assert scrubbed("/proc/cpuinfo", rows) == ["vendor_id: GenuineIntel", "flags: vmx"]
    table = bytes(range(256)) + bytes(20)
    kept = scrubbed("/sys/firmware/acpi/tables/FACP", table)
    assert bytes.fromhex(kept["hex"])[16:268] == bytes(252)


def test_a_recording_goes_into_a_new_directory_only(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    with pytest.raises(Exception, match="file exists"):
        save(str(tmp_path), Recorder(FixtureHost({})), {})
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"ask": 1}', '{"unheard": {}}', '{"like": "."}', '{"like": "../none"}']
)
def test_a_directory_that_describes_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "host.json").write_text(text)
    with pytest.raises(FixtureError):
        load(str(tmp_path))


# ---------------------------------------------------------------- the child, CPUID, names


def test_a_child_that_hangs_is_killed() -> None:
    def hang(tell: child.Tell) -> None:
        tell({"a": {"b": 1}})
        tell({"a": {"c": 2}})
        while True:
            os.read(os.pipe()[0], 1)

    for limit in (0.3, 3, 30):  # seconds: on a busy machine it takes some to begin
        found = child.run([hang], limit=limit)
        if "c" in found.get("a", {}):
            break
    assert found == {"a": {"b": 1, "c": 2}, "ended": f"was killed after {limit} s"}


def test_a_child_that_faults_is_told_of() -> None:
    def fault(tell: child.Tell) -> None:
        tell({"first": True})
        os.kill(os.getpid(), 11)

    found = child.run([fault, lambda tell: tell({"second": True})])
    assert found == {"first": True, "ended": "was ended by SIGSEGV"}


def test_a_child_of_a_process_without_standard_streams() -> None:
    code = """
import os, sys
sys.path.append(sys.argv[1])
from minirun.virt import child
for fd in (0, 1, 2):
    os.close(fd)
sys.exit(0 if child.run([lambda tell: tell({"a": 1})]) == {"a": 1} else 1)
"""
    checkout = str(PACKAGE.parents[1])
    done = subprocess.run([sys.executable, "-ISB", "-c", code, checkout], check=False)
    assert done.returncode == 0


def test_a_child_that_raises_is_told_of() -> None:
    def wrong(_tell: child.Tell) -> None:
        raise ValueError("odd")

    assert child.run([wrong]) == {"error": "ValueError: odd"}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="CPUID is x86's")
def test_cpuid_agrees_with_the_kernel() -> None:
    found = cpuid.read()
    text = Path("/proc/cpuinfo").read_text()
    vendor = collect(RealHost(probe=False)).get("cpu.vendor")
    assert f"vendor_id\t: {vendor}" in text
    assert bool(found["leaves"]["1.0"][2] >> 31 & 1) == (" hypervisor" in text)


def test_without_the_hypervisor_bit_no_signature_is_read() -> None:
    asked = []

    def look(leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        asked.append(leaf)
        return (0x40000001, 0x4B4D564B, 0x564B4D56, 0x4D) if leaf >= 0x40000000 else (1, 0, 0, 0)

    found = cpuid.leaves(look)
    assert not any(0x40000000 <= leaf < 0x80000000 for leaf in asked)
    assert "40000000.0" not in found


@pytest.mark.skipif(not os.path.exists("/usr/include/linux/kvm.h"), reason="needs kernel headers")
def test_extensions_have_the_headers_names() -> None:
    found: dict[str, set[str]] = {}
    for line in Path("/usr/include/linux/kvm.h").read_text().splitlines():
        words = line.split()
        if len(words) > 2 and words[1].startswith("KVM_CAP_") and words[2].isdigit():
            found.setdefault(words[2], set()).add(words[1].removeprefix("KVM_CAP_"))
    for number, names in found.items():
        assert set(named({number: 1})) <= names, number


def test_none_is_no_fact() -> None:
    found = Facts()
    assert found.take("a", "here", lambda: None) is None
    assert found.why("a") == "here does not say"

    def refused() -> None:
        raise Unknown("because")

    found.take("b", "here", refused)
    assert (found.get("b"), found.why("b")) == (None, "because")
    assert found.shown("b") == "unknown (because)"


# ---------------------------------------------------------------- the command line


def run(*argv: str) -> int:
    return cli.main(["virt", *argv])


@pytest.mark.parametrize(
    "name", ["intel-bare", "no-group", "gcp", "cpu-without", "firecracker-pvm"]
)
def test_the_exit_status_is_the_verdicts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = json.loads((MACHINES / name / "expect.json").read_text())
    assert run("--fixture", str(MACHINES / name)) == expected["exit"]
    assert expected["code"] in capsys.readouterr().out
    assert run("--json", "--fixture", str(MACHINES / name)) == expected["exit"]
    assert json.loads(capsys.readouterr().out)["verdict"]["code"] == expected["code"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["intel-bare", "docker-in-vm", "everything-refused"])
def test_questions(name: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = json.loads((MACHINES / name / "expect.json").read_text())["is"][kind]
    status = run("--is", kind, "--fixture", str(MACHINES / name))
    said = capsys.readouterr().out
    assert status == {True: 0, False: 1, None: 14}[wanted]
    assert said.startswith({True: "yes", False: "no", None: "unknown ("}[wanted])
    assert run("--is", kind, "--quiet", "--fixture", str(MACHINES / name)) == status
    assert not capsys.readouterr().out


def test_misuse_is_no_answer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--is", "vmm") == 2
    assert run("--unheard") == 2
    assert run("--record", "a", "--fixture", "b") == 2
    assert run("--record", "/proc/none", "--is", "vm", "--no-probe") == 2
    assert run("--is", "vm", "--fixture", str(tmp_path / "none")) == 2
    assert "none/host.json" in capfd.readouterr().err


def test_other_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = str(MACHINES / "intel-bare")
    assert run("--schema") == 0
    assert json.loads(capsys.readouterr().out)["properties"]["schema"]["const"] == document.SCHEMA
    assert run("--explain", "nested", "--fixture", machine) == 0
    assert "VT-x (vmx): yes" in capsys.readouterr().out
    assert run("--facts", "--fixture", machine) == 0
    assert "cpu.vmx.raw = true  [CPUID (memfd) 1.ECX[5]]" in capsys.readouterr().out
    assert run("--record", str(tmp_path / "a"), "--no-probe") in (0, 10, 11, 12, 13, 14)
    capsys.readouterr()
    assert run("--is", "vm", "--fixture", str(tmp_path / "a")) == run("--is", "vm", "--no-probe")
    shutil.rmtree(tmp_path / "a")
