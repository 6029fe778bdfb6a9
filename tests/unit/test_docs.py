"""The documents say what the program is: made parts are current, and what is written is so."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lib.pages import sections

from minirun import recipe
from minirun.cli import learn
from minirun.cli.compare import command as compare
from minirun.cli.virt import command as virt
from minirun.engine import defaults
from minirun.errors import ConfigError
from minirun.grammar import Verb
from minirun.options import GLOBALS, HUMAN, VERBS
from minirun.spec import Spec
from minirun.validate import validate

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "README.md").read_text()
MAN = CHECKOUT / "minirun" / "man"
PAGES = [f"minirun/pages/{name}.md" for name in learn.PAGES]
DOCUMENTS = [
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "rootfs/README.md"),
    *PAGES,
]


def part(heading: str, text: str = README) -> str:
    """Give a section of README.md."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found is not None, heading
    return found[1]


def test_made_parts_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-m", "lib.docs", "--check"],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'scripts'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"run scripts/docs\n{done.stdout}{done.stderr}"


# ---------------------------------------------------------------- manual pages


@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff")
@pytest.mark.parametrize("page", sorted(path.name for path in MAN.glob("*.[1-9]")))
def test_pages_are_set_without_warnings(page: str) -> None:
    command = ["groff", "-t", "-man", "-Tascii", "-ww", "-z", "-rCHECKSTYLE=3", page]
    done = subprocess.run(command, cwd=MAN, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_verdict_is_told() -> None:
    schema = json.loads((CHECKOUT / "minirun" / "virt" / "schema.json").read_text())
    text = (CHECKOUT / "scripts" / "lib" / "man" / "virt.txt").read_text()
    told = re.findall(r"[A-Z]{2,}[A-Z0-9_]*", "\n".join(re.findall(r"^(.+?)::", text, re.M)))
    codes = schema["properties"]["verdict"]["properties"]["code"]["enum"]
    assert [code for code in codes if code not in told] == []


@pytest.mark.parametrize("verb", VERBS.values())
def test_pages_name_every_option(verb: Verb) -> None:
    text = (MAN / f"minirun-{verb.name}.1").read_text().replace("\\-", "-")
    for option in verb.options:
        assert (f"\\fB--{option.names[0]}\\fR" in text) is not option.hidden


def test_the_first_page_names_every_verb_and_global_option() -> None:
    text = (MAN / "minirun.1").read_text().replace("\\-", "-")
    for verb in VERBS.values():
        assert f"\nminirun-{verb.name}(1)\n" in text
    for name in HUMAN:
        assert f"\nminirun-{name}(1)\n" in text
        assert (MAN / f"minirun-{name}.1").exists()
    assert all(f"--{option.names[0]}" in text for option in GLOBALS if not option.hidden)


# ---------------------------------------------------------------- pages


def test_every_page_is_listed() -> None:
    found = sorted(path.stem for path in (CHECKOUT / "minirun" / "pages").iterdir())
    assert found == sorted(learn.PAGES)
    overview = (MAN / "minirun.1").read_text().replace("\\-", "-")
    for name in learn.PAGES:
        assert f"\nminirun-{name}(7)\n" in overview
        assert (MAN / f"minirun-{name}.7").exists()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_leads_on(name: str) -> None:
    """It is short and plain, ends with where to read on, and names only what there is."""
    text = (CHECKOUT / name).read_text()
    lines = text.splitlines()
    assert 80 <= len(lines) <= 200
    assert all(len(line) <= 100 or line.startswith(("$ ", "| ", "minirun: ")) for line in lines)
    assert not set(re.findall(r"[^\x00-\x7f]", text)) - {"…"}
    assert re.findall(r"^## (.+)$", text, re.M)[-1] == "See also"
    assert "```console" in text
    pages = {path.name for path in MAN.iterdir()}
    for page, section in re.findall(r"\b(minirun(?:-[a-z]+)*)\(([17])\)", text):
        assert f"{page}.{section}" in pages, page
    for lesson in re.findall(r"minirun learn ([a-z-]+)", text):
        assert lesson in [*learn.COURSE, *learn.PAGES]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_sections_of_the_manual_that_are_named_exist(name: str) -> None:
    text = (CHECKOUT / name).read_text()
    for page, section in re.findall(r'\b(minirun[a-z-]*\([17]\)),\s+"([A-Z][^"]+)"', text):
        there = (MAN / page.replace("(", ".").rstrip(")")).read_text().replace("\\-", "-")
        assert f'.SH "{" ".join(section.split())}"' in there, (page, section)


def test_pages_of_an_unknown_form_are_refused() -> None:
    title, told = sections("# A title\n\ntext\n\n## One\n\n- a\n  b\n")
    assert (title, told) == ("A title", {"DESCRIPTION": ["text"], "ONE": [".IP \\(bu 2", "a b"]})
    for wrong in ("no title\n", "# t\n\n> quoted\n", "# t\n\n```\nopen\n", "# t\n\n| a |\nb\n"):
        with pytest.raises(ValueError, match=r"title|known|no end|table"):
            sections(wrong)


# ---------------------------------------------------------------- README.md


def test_the_picture_shows_what_is_there() -> None:
    picture = part("How it is built").split("```")[1]
    named = re.findall(r"\b([a-z]+(?:/|\.py))", picture)
    assert len(named) >= 20
    assert [name for name in named if not (CHECKOUT / "minirun" / name).exists()] == []
    layers = re.findall(r"^ \| ([a-z]+(?:/|\.py))", picture, re.M)
    order = ["cli/", "engine/", "rootfs/", "network/", "container.py"]
    assert layers == [*order, "recipe.py", "namespaces.py", "hooks.py", "kernel/"]
    count = re.search(r"the order: (\d+) steps", picture)
    assert count is not None
    assert int(count[1]) == sum(len(functions) for _, functions in recipe.CREATE)
    assert len({len(line) for line in picture.splitlines() if line.startswith(" |")}) == 1


def test_the_commands_are_all_there() -> None:
    told = part("The commands")
    for name in [*VERBS, *HUMAN]:
        assert re.search(rf"`{name}\b", told), name


REFUSED: dict[str, dict[str, Any]] = {
    "vm": {"vm": {"kernel": {"path": "/k"}}},
}


@pytest.mark.parametrize("field", REFUSED)
def test_fields_that_are_said_to_be_refused_are(field: str) -> None:
    assert f"`{field}`" in part("What does not work yet")
    config: dict[str, Any] = {
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"args": ["x"], "cwd": "/"},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "network"}]},
    }
    validate(Spec.decode(config))
    for name, value in REFUSED[field].items():
        config[name] = {**config.get(name, {}), **value}
    with pytest.raises(ConfigError, match="is not supported yet") as caught:
        validate(Spec.decode(config))
    assert caught.value.path == field


def test_error_words_are_in_the_program() -> None:
    text = (CHECKOUT / "scripts" / "lib" / "man" / "minirun.txt").read_text()
    rows = re.findall(r"^(.+?):: ", part("ERRORS", text), re.M)
    words = [word for row in rows for word in row.split(", ")]
    assert len(words) > 12
    sources = [path.read_text() for path in (CHECKOUT / "minirun").rglob("*.py")]
    # The kernel's own words, and one that begins with what varies.
    own = [
        word
        for word in words
        if word not in ("no such file or directory", "invalid config: PATH: ...")
    ]
    assert [word for word in own if not any(word in text for text in sources)] == []


def test_the_table_of_defaults_is_theirs() -> None:
    told = part("Safe by default")
    listed = re.search(r"the capabilities ([A-Z_, ]+)", told)
    assert listed is not None
    names = tuple(f"CAP_{name.strip()}" for name in listed[1].split(","))
    assert names == defaults.CAPABILITIES
    assert f"and {defaults.PIDS} processes" in told
    soft, hard = defaults.RLIMITS["RLIMIT_NOFILE"]
    assert f"at most {soft} open files ({hard} " in told
    assert defaults.RLIMITS["RLIMIT_CORE"] == (0, 0)
    assert defaults.MEMORY_DIVISOR == 2
    assert {"time", *defaults.NAMESPACES} == {"mount", "pid", "ipc", "uts", "cgroup", "time"}


def test_flags_that_are_named_exist() -> None:
    known = {f"--{name}" for verb in VERBS.values() for o in verb.options for name in o.names}
    known |= {f"--{name}" for option in GLOBALS for name in option.names}
    # Of minirun's other verbs and scripts, and of other programs.
    known |= {"--json", "--shell", "--name", "--uninstall", "--prefix", "--runtime", "--help"}
    known |= {"--scope", "--property", "--default", "--cgroups", "--runc-binary", "--dry-run"}
    known |= {"--install", "--make-wheelhouse"}
    known |= {name for option in [*virt.params, *compare.params] for name in option.opts}
    known |= {"--yes", "--source", "--target", "--uts", "--nodename"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known


# ---------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    path = CHECKOUT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text()), target


def anchors(text: str) -> set[str]:
    """Give what the headings of a text are called in links."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_scripts_and_files_that_are_named_exist(name: str) -> None:
    text = (CHECKOUT / name).read_text()
    for path in re.findall(r"(?<![\w/.])((?:scripts|tests|minirun)/[\w./-]*\w)", text):
        assert (CHECKOUT / path).exists(), path
