"""features: valid, true, and of the tables; and state, by the specification's schemas."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
from referencing.jsonschema import DRAFT4

from minirun import SPEC_VERSION, cli, container, jsontext, mountoptions, refuse, validate
from minirun.cli import features
from minirun.errors import ConfigError
from minirun.kernel import seccomp as kernel
from minirun.spec import Spec
from minirun.state import Container, Saved

SCHEMA = Path(os.environ.get("MINIRUN_OCI_SCHEMA", "/nonexistent"))
needs_schema = pytest.mark.requires("schema")


def retrieve(uri: str) -> referencing.Resource[Any]:
    content = json.loads((SCHEMA / Path(uri).name).read_text())
    return referencing.Resource.from_contents(content, default_specification=DRAFT4)


def valid(document: Any, name: str) -> bool:
    schema = json.loads((SCHEMA / f"{name}-schema.json").read_text())
    registry: referencing.Registry[Any] = referencing.Registry(retrieve=retrieve)  # type: ignore[call-arg]
    checker = jsonschema.Draft4Validator(schema, registry=registry)
    return bool(checker.is_valid(document))


def vectors(name: str, kind: str) -> list[Path]:
    return sorted((SCHEMA / "vectors" / name / kind).glob("*.json"))


def shown(capfd: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["features"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    return out


@needs_schema
def test_it_is_valid(capfd: pytest.CaptureFixture[str]) -> None:
    assert valid(json.loads(shown(capfd)), "features")


@needs_schema
@pytest.mark.parametrize("name", ["features", "state"])
def test_the_vectors_of_the_specification(name: str) -> None:
    for path in vectors(name, "good"):
        assert valid(json.loads(path.read_text()), name), path
    assert vectors(name, "bad")
    for path in vectors(name, "bad"):
        try:
            document = jsontext.read(str(path), path.name)
        except jsontext.JSONError:
            continue
        assert not valid(document, name), path


@needs_schema
@pytest.mark.parametrize("annotations", [{}, {"a": "b"}])
def test_the_state_is_valid(annotations: dict[str, str], tmp_path: Path) -> None:
    with Container(str(tmp_path), "x", os.open(tmp_path, os.O_PATH)) as found:
        found.saved = Saved(oci_version="1.3.0", id="x", bundle="/b", annotations=annotations)
        document = container._state_of(found)
    assert valid(document, "state")


def test_it_is_indented_as_runcs(capfd: pytest.CaptureFixture[str]) -> None:
    text = shown(capfd)
    assert text.startswith(
        f'{{\n    "ociVersionMin": "1.0.0",\n    "ociVersionMax": "{SPEC_VERSION}"'
    )
    assert text.endswith("}\n")


def test_it_needs_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    shown(capfd)


def test_what_engines_look_for() -> None:
    found = features.describe()
    linux = found["linux"]
    assert {"rro", "rbind", "nosuid"} <= set(found["mountOptions"])
    assert set(found["mountOptions"]) == set(mountoptions.KNOWN)
    assert "user" in linux["namespaces"]
    assert linux["mountExtensions"]["idmap"]["enabled"] is True
    assert linux["cgroup"]["v2"] is True
    assert linux["cgroup"]["v1"] is False
    assert found["hooks"] == [
        *("prestart", "createRuntime", "createContainer", "startContainer", "poststart"),
        "poststop",
    ]


def test_memory_policies_once_they_are_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "knows", lambda **_: True)
    found = features.describe()["linux"]["memoryPolicy"]
    assert "MPOL_INTERLEAVE" in found["modes"]
    assert "MPOL_F_STATIC_NODES" in found["flags"]
    monkeypatch.setattr(features, "knows", lambda **_: False)
    assert "memoryPolicy" not in features.describe()["linux"]


def test_what_is_refused_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert features.knows(process={"apparmorProfile": "x"})

    def refusing(spec: Spec, _notes: list[str]) -> None:
        if spec.process and spec.process.apparmor_profile:
            raise refuse.unsupported_yet("process.apparmorProfile")

    monkeypatch.setattr(validate, "CHECKS", (*validate.CHECKS, refusing))
    assert not features.knows(process={"apparmorProfile": "x"})
    assert features.describe()["linux"]["apparmor"] == {"enabled": False}


def test_what_the_host_lacks_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(_spec: Spec, _notes: list[str]) -> None:
        raise ConfigError("linux.intelRdt", "needs resctrl, which is not mounted")

    monkeypatch.setattr(validate, "CHECKS", (lacking,))
    assert features.describe()["linux"]["intelRdt"] == {"enabled": True}


def test_without_libseccomp_there_are_no_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "libseccomp_version", lambda: "")
    found = features.describe()
    assert found["linux"]["seccomp"] == {"enabled": False}
    assert not any("libseccomp" in name for name in found["annotations"])


@pytest.mark.requires("seccomp")
def test_flags_that_the_kernel_knows() -> None:
    assert kernel.knows_flag(kernel.SECCOMP_FILTER_FLAG_LOG)
    assert kernel.knows_flag(kernel.SECCOMP_FILTER_FLAG_TSYNC)
    assert not kernel.knows_flag(1 << 30)
