"""Every block of the documents says what it is, and is that: no test overlooks one."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from typing import Any

import pytest
import yaml
from blocks import CHECKOUT, DOCUMENTS, LANGUAGES, TYPED, Block, all_blocks, blocks, examples
from conftest import WORDS

from minirun.spec import Spec
from minirun.validate import validate

BLOCKS = [*all_blocks(), *examples()]
BASE: dict[str, Any] = {
    "ociVersion": "1.2.0",
    "root": {"path": "rootfs"},
    "process": {"args": ["x"], "cwd": "/"},
    "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network"}]},
}


def of(*languages: str) -> list[Any]:
    """Give the blocks in these languages as parameters."""
    return [pytest.param(one, id=one.name) for one in BLOCKS if one.language in languages]


@pytest.mark.parametrize("block", [pytest.param(one, id=one.name) for one in BLOCKS])
def test_a_block_says_what_it_is(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block.document}:{block.line}"
    assert set(block.needs) <= set(WORDS)
    typed = {"needs", "run by", "not run"} & set(block.said)
    assert not typed or block.language in TYPED
    assert len({"run by", "not run"} & set(block.said)) < 2
    assert "config.json" not in block.said or block.language == "json"


@pytest.mark.parametrize("block", of(*TYPED))
def test_what_is_heavy_says_who_runs_it(block: Block) -> None:
    assert not block.heavy or {"run by", "not run"} & set(block.said)


def test_no_block_is_hidden_in_an_indentation() -> None:
    for path in DOCUMENTS:
        fences = re.findall(r"^\s*```", path.read_text(), re.M)
        assert len(fences) == 2 * len(blocks(path)), path


@pytest.mark.parametrize("block", of("console"))
def test_a_session_begins_with_a_prompt(block: Block) -> None:
    assert block.text.startswith("$ ")
    assert all(line == line.rstrip() for line in block.text.splitlines())


@pytest.mark.parametrize("block", of("json"))
def test_json_is_json(block: Block) -> None:
    part = json.loads(block.text)
    if "config.json" in block.said:
        config = {**BASE, **part}
        config["linux"] = {**BASE["linux"], **part.get("linux", {})}
        validate(Spec.decode(config))


@pytest.mark.parametrize("block", of("yaml"))
def test_yaml_is_yaml(block: Block) -> None:
    for document in yaml.safe_load_all(block.text):
        assert {"apiVersion", "kind"} <= set(document)


@pytest.mark.parametrize("block", of("toml"))
def test_toml_is_toml(block: Block) -> None:
    assert tomllib.loads(block.text)


@pytest.mark.parametrize("block", of(*TYPED))
def test_the_shell_can_read_it(block: Block) -> None:
    script = block.text
    if block.language == "console":
        script = "\n".join(command for command, _ in block.commands())
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for path in re.findall(r"(?<![\w./-])scripts/[\w-]+", script):
        assert (CHECKOUT / path).exists(), path


def test_what_others_run_they_know() -> None:
    """A file that is said to run a block exists, and names what the block's first command is."""
    for block in BLOCKS:
        if file := block.said.get("run by"):
            first = (block.commands()[0][0] if block.language == "console" else block.text).split()
            words = [word for word in first if word not in ("sudo", "tee", "minirun", "docker")]
            name = words[0].rpartition("/")[2]
            assert name in (CHECKOUT / file).read_text(), f"{block.document}:{block.line}: {name}"


def test_few_are_not_run() -> None:
    left = [block.name for block in BLOCKS if "not run" in block.said]
    assert len(left) <= 7, left
