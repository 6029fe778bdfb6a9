"""Vagrant's files: what can be said of them without a machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
VAGRANTFILE = CHECKOUT / "Vagrantfile"
README = (CHECKOUT / "README.md").read_text()
# The least of Vagrant in which the file can be evaluated: each setting becomes a path and a value.
HARNESS = """
$notes = []
class Note
  def initialize(path) = @path = path
  def method_missing(name, *words, **flags, &block)
    path = "#{@path}.#{name}"
    if name.end_with?("=") || !words.empty?
      words += [flags] unless flags.empty?
      $notes << "#{path.delete_suffix('=')} #{words.map(&:inspect).join(' ')}"
      block&.call(Note.new(words[0].to_s), Note.new("#{words[0]}.override"))
    end
    Note.new(path)
  end
  def respond_to_missing?(*) = true
end
module Vagrant
  def self.configure(_) = yield(Note.new("config"))
end
load ARGV[0]
puts $notes
"""


def configured(**environment: str) -> subprocess.CompletedProcess[str]:
    ruby = shutil.which("ruby")
    if ruby is None:
        pytest.skip("needs ruby")
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("MINIRUN_")}
    return subprocess.run(
        [ruby, "-e", HARNESS, os.fspath(VAGRANTFILE)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def settings(**environment: str) -> dict[str, str]:
    ran = configured(**environment)
    assert ran.returncode == 0, ran.stderr
    return dict(line.split(" ", 1) for line in ran.stdout.splitlines())


def test_a_local_box_comes_first_and_for_libvirt_only(tmp_path: Path) -> None:
    box = tmp_path / "some.box"
    box.touch()
    seen = settings(MINIRUN_VAGRANT_LOCAL_BOX=os.fspath(box))
    assert seen["libvirt.override.vm.box_url"] == f'"file://{box}"'
    assert "virtualbox.override.vm.box_url" not in seen
    assert seen["virtualbox.override.vm.box"] == '"debian/bookworm64"'


def test_a_box_that_was_built_again_is_another_box(tmp_path: Path) -> None:
    box = tmp_path / "some.box"
    names = set()
    for age in (1, 2):
        box.touch()
        os.utime(box, (age, age))
        seen = settings(MINIRUN_VAGRANT_LOCAL_BOX=os.fspath(box))
        names.add(seen["libvirt.override.vm.box"])
    assert len(names) == 2


def test_a_box_that_is_asked_for_by_name_wins_everywhere(tmp_path: Path) -> None:
    box = tmp_path / "some.box"
    box.touch()
    seen = settings(
        MINIRUN_VAGRANT_LOCAL_BOX=os.fspath(box),
        MINIRUN_VAGRANT_BOX="mine/debian",
        MINIRUN_VAGRANT_BOX_URL="https://boxes.example/debian.json",
    )
    assert "libvirt.override.vm.box_url" not in seen
    boxes = {text for name, text in seen.items() if name.endswith("vm.box")}
    assert boxes == {'"mine/debian"'}
    assert seen["config.vm.box_url"] == '"https://boxes.example/debian.json"'


def test_emulation_is_waited_for_longer() -> None:
    emulated = settings(MINIRUN_VAGRANT_ACCEL="tcg")
    hardware = settings(MINIRUN_VAGRANT_ACCEL="kvm")
    assert emulated["libvirt.driver"] == '"qemu"'
    assert "libvirt.driver" not in hardware
    assert int(emulated["config.vm.boot_timeout"]) >= 3 * int(hardware["config.vm.boot_timeout"])
    assert settings(MINIRUN_VAGRANT_TIMEOUT="7")["config.vm.boot_timeout"] == "7"


def test_the_accelerator_is_chosen_by_the_cpu() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    usable = bool(flags & {"vmx", "svm"}) and Path("/dev/kvm").exists()
    assert ("libvirt.driver" in settings()) == (not usable)


@pytest.mark.parametrize(
    "setting", ["ACCEL=hvf", "MEMORY=lots", "CPUS=0", "CPUS=-1", "TIMEOUT=1h"], ids=str
)
def test_what_cannot_be_is_refused_by_name(setting: str) -> None:
    name, text = setting.split("=")
    ran = configured(**{f"MINIRUN_VAGRANT_{name}": text})
    assert ran.returncode != 0
    assert f"MINIRUN_VAGRANT_{name} is" in ran.stderr
    assert text in ran.stderr


def test_its_settings_are_those_that_its_head_lists() -> None:
    head, body = VAGRANTFILE.read_text().split("\nsetting =", 1)
    listed = set(re.findall(r"^#   MINIRUN_(\w+)", head, re.M))
    assert listed == set(re.findall(r'(?:setting|number)\.call\("(\w+)"', body))


def test_readme_has_the_boxes_that_it_names() -> None:
    for box in re.findall(r'"((?:debian|bento|generic)/\w\S*?)"', VAGRANTFILE.read_text()):
        assert f"`{box}`" in README


def test_the_smoke_set_names_tests_that_are_there() -> None:
    script = (CHECKOUT / "scripts/vagrant-test").read_text()
    listed = re.search(r"^smoke=\(\n(.*?)^\)", script, re.M | re.S)
    assert listed is not None
    names = [name.split("::") for name in listed[1].split()]
    for file, test in names:
        source = (CHECKOUT / "tests/privileged" / file).read_text()
        assert re.search(rf"^def {test}\(", source, re.M), f"{file} has no {test}"
    matters = {"namespaces", "limits", "network", "exec", "seccomp_filter", "lifecycle"}
    assert matters <= {file.removeprefix("test_").removesuffix(".py") for file, _ in names}


def test_what_is_missing_is_named_and_not_installed(tmp_path: Path) -> None:
    for tool in ("dirname", "readlink", "sort", "cat", "id"):
        found = shutil.which(tool)
        assert found is not None
        (tmp_path / tool).symlink_to(found)
    ran = subprocess.run(
        [os.fspath(CHECKOUT / "scripts/vagrant-test")],
        env={"PATH": os.fspath(tmp_path)},  # neither vagrant nor apt-get
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert re.match(r"vagrant-test: not installed here: .*\bvagrant\b", ran.stderr)
    assert "--install" in ran.stderr


@pytest.mark.parametrize("script", ["vagrant-box", "vagrant-test"])
def test_a_wrong_word_is_refused(script: str) -> None:
    command = [os.fspath(CHECKOUT / "scripts" / script), "--no-such"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 64
    assert ran.stderr.startswith("Usage: ")
