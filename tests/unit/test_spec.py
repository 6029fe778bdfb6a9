"""config.json as records: names as in the specification, losing nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from minirun import jsontext, spec
from minirun.cli.spec import example
from minirun.errors import ConfigError
from minirun.record import Record
from minirun.spec import Spec

SCHEMA = Path(os.environ.get("MINIRUN_OCI_SCHEMA", "/nonexistent"))


@pytest.mark.parametrize("unified", [True, False])
def test_nothing_is_lost_of_the_example(unified: bool) -> None:
    config = example(unified=unified)
    assert Spec.decode(config).encode() == config


def test_values_arrive_where_they_belong() -> None:
    config = Spec.decode(example(unified=True))
    assert config.process is not None
    assert config.process.capabilities is not None
    assert config.process.capabilities.bounding[0] == "CAP_AUDIT_WRITE"
    assert config.process.no_new_privileges
    assert config.linux.readonly_paths[-1] == "/proc/sysrq-trigger"
    assert config.linux.resources is not None
    assert config.linux.resources.devices[0].allow is False
    assert config.hooks.poststop == ()


def test_a_user_id_is_not_the_one_that_means_unchanged() -> None:
    with pytest.raises(ConfigError, match=r"process\.user\.gid"):
        Spec.decode({"ociVersion": "1.3.0", "process": {"user": {"gid": 2**32 - 1}}})


def resolve(name: str, node: dict[str, Any]) -> dict[str, Any]:
    """Follow `$ref` in the specification's schema."""
    while "$ref" in node:
        file, _, place = node["$ref"].partition("#")
        name = file or name
        node = jsontext.read(str(SCHEMA / name), name)
        for key in place.strip("/").split("/"):
            node = node[key]
    return {**node, "file": name}


@pytest.mark.requires("schema")
@pytest.mark.parametrize(
    ("record", "file", "place"),
    [
        (spec.Spec, "config-schema.json", ""),
        (spec.Process, "config-schema.json", "process"),
        (spec.Root, "config-schema.json", "root"),
        (spec.Hooks, "config-schema.json", "hooks"),
        (spec.Linux, "config-schema.json", "linux"),
        (spec.Resources, "config-schema.json", "linux/resources"),
        (spec.Memory, "config-schema.json", "linux/resources/memory"),
        (spec.CPU, "config-schema.json", "linux/resources/cpu"),
        (spec.BlockIO, "config-schema.json", "linux/resources/blockIO"),
        (spec.Seccomp, "config-schema.json", "linux/seccomp"),
        (spec.IntelRdt, "config-schema.json", "linux/intelRdt"),
    ],
)
def test_every_property_of_the_schema_has_a_field(
    record: type[Record], file: str, place: str
) -> None:
    node = resolve(file, jsontext.read(str(SCHEMA / file), file))
    for key in place.split("/") if place else ():
        node = resolve(node["file"], node["properties"][key])
    known = {str(field.name) for field in record._fields.values()}
    missing = set(node["properties"]) - known
    assert missing <= {"freebsd"}, missing
