"""tmpcopyup against who changes the image while it is copied (T-FS13)."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from minirun import copyup
from minirun.errors import MinirunError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def places(tmp_path: Path) -> Iterator[list[int]]:
    opened = []
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
        opened.append(os.open(tmp_path / name, os.O_RDONLY))
    yield opened
    for fd in opened:
        os.close(fd)


EXCHANGES: dict[str, tuple[Callable[[Path], None], type[Exception]]] = {
    "fifo": (os.mkfifo, MinirunError),
    "link": (lambda path: path.symlink_to("/etc/passwd"), OSError),
    "directory": (lambda path: path.mkdir(), MinirunError),
}


@pytest.mark.parametrize("kind", EXCHANGES)
def test_a_file_that_became_something_else(
    places: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "source/file"
    path.write_text("x")
    before = os.stat
    make, error = EXCHANGES[kind]

    def exchanging(name: Any, **options: Any) -> os.stat_result:
        found = before(name, **options)
        if name == "file" and stat.S_ISREG(found.st_mode):
            path.unlink()
            make(path)
        return found

    monkeypatch.setattr(os, "stat", exchanging)
    with pytest.raises(error):
        copyup.copy_tree(*places)
    assert not os.path.lexists(tmp_path / "target/file")
