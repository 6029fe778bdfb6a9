"""-u: the grammar, and account files that an attacker wrote."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minirun.engine import users
from minirun.errors import UsageError

PASSWD = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/srv/web:/bin/sh\n"
GROUP = "root:x:0:root\nweb:x:1001:\nvideo:x:27:root,web\naudio:x:29:web\n"


@pytest.fixture
def rootfd(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "etc").mkdir()
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def accounts(tmp_path: Path, rootfd: int) -> Callable[..., None]:
    def write(passwd: str | bytes = PASSWD, group: str | bytes = GROUP) -> None:
        for name, text in (("passwd", passwd), ("group", group)):
            data = text if isinstance(text, bytes) else text.encode()
            (tmp_path / "etc" / name).write_bytes(data)

    return write


@pytest.mark.parametrize(
    ("text", "uid", "gid"),
    [
        ("1", 1, 0),
        ("0", 0, 0),
        ("1:2", 1, 2),
        ("4294967294", 4294967294, 0),
        ("4294967294:4294967294", 4294967294, 4294967294),
    ],
)
def test_numbers_are_exactly_themselves(rootfd: int, text: str, uid: int, gid: int) -> None:
    account = users.resolve(text, rootfd)
    assert (account.uid, account.gid, account.groups, account.home) == (uid, gid, (), "/")


@pytest.mark.parametrize(
    "text",
    [
        *("01", "+1", " 1", "1 ", "1:", ":1", ":", "", "0x1", "1e3", "\u0661", "1_000", "-1"),
        *("4294967295", "4294967296", "99999999999999999999", "1:4294967295", "1:2:3", "1:-1"),
        *("ro\0ot", "1\0", "root\n", "root:01", "a b", "1:1_0", "/root", "..", "-root", "é"),
    ],
)
def test_anything_else_is_refused(rootfd: int, accounts: Callable[..., None], text: str) -> None:
    accounts()
    with pytest.raises(UsageError):
        users.resolve(text, rootfd)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, (0, 0, (27,), "/root")),
        ("root", (0, 0, (27,), "/root")),
        ("web", (1000, 1001, (27, 29), "/srv/web")),
        ("1000", (1000, 1001, (27, 29), "/srv/web")),
        ("web:video", (1000, 27, (), "/srv/web")),
        ("web:5", (1000, 5, (), "/srv/web")),
        ("7:audio", (7, 29, (), "/")),
    ],
)
def test_names_are_those_of_the_root_filesystem(
    rootfd: int, accounts: Callable[..., None], text: str | None, expected: object
) -> None:
    accounts()
    found = users.resolve(text, rootfd)
    assert (found.uid, found.gid, found.groups, found.home) == expected


@pytest.mark.parametrize("text", ["nobody", "web:nobody"])
def test_unknown_names_are_refused(rootfd: int, accounts: Callable[..., None], text: str) -> None:
    accounts()
    with pytest.raises(UsageError, match="unable to find"):
        users.resolve(text, rootfd)


def test_a_number_is_never_a_name(rootfd: int, accounts: Callable[..., None]) -> None:
    accounts(passwd="1000:x:0:0::/evil:/bin/sh\n", group="2000:x:0:\n")
    found = users.resolve("1000:2000", rootfd)
    assert (found.uid, found.gid, found.home) == (1000, 2000, "/")


@pytest.mark.parametrize(
    "line",
    [
        "web:x:0",
        "#web:x:0:0::/:/bin/sh",
        "web:x:-1:0::/:/bin/sh",
        "web:x:0x0:0::/:/bin/sh",
        "web:x: 0:0::/:/bin/sh",
        "web:x::0::/:/bin/sh",
        "web:x:00:0::/:/bin/sh",
        "web:x:4294967295:0::/:/bin/sh",
        "web:x:4294967296:0::/:/bin/sh",
        " web:x:0:0::/:/bin/sh",
        "web:x:0:0::/:/bin/sh:more",
        "w\0eb:x:0:0::/:/bin/sh",
    ],
)
def test_malformed_lines_do_not_count(
    rootfd: int, accounts: Callable[..., None], line: str
) -> None:
    accounts(passwd=f"{line}\n{PASSWD}")
    assert users.resolve("web", rootfd).uid == 1000


def test_the_first_of_two_lines_counts(rootfd: int, accounts: Callable[..., None]) -> None:
    accounts(passwd="web:x:5:6::/first:/bin/sh\n" + PASSWD)
    found = users.resolve("web", rootfd)
    assert (found.uid, found.gid, found.home) == (5, 6, "/first")


@pytest.mark.parametrize("home", ["", "relative", "/a\rb", "/a\x1bb", "/" + "a" * 5000])
def test_an_odd_home_is_the_root_directory(
    rootfd: int, accounts: Callable[..., None], home: str
) -> None:
    accounts(passwd=f"web:x:5:6::{home}:/bin/sh\n")
    assert users.resolve("web", rootfd).home == "/"


def test_text_that_is_not_utf8_is_passed_over(rootfd: int, accounts: Callable[..., None]) -> None:
    accounts(passwd=b"\xff\xfe:x:0:0::/:/bin/sh\nweb:x:0:0::/\xff:/bin/sh\n" + PASSWD.encode())
    assert users.resolve("web", rootfd).uid == 1000


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(10 << 30)


def _long_line(path: Path) -> None:
    path.write_bytes(b"web:x:5:6::/" + b"a" * (4 << 20) + b":/bin/sh\n")


def _many_lines(path: Path) -> None:
    path.write_bytes(b"a:x:1:1::/:/bin/sh\n" * 200_000)


def _link_out(path: Path) -> None:
    (path.parents[2] / "host-passwd").write_text("web:x:5:6::/:/bin/sh\n")
    path.symlink_to("../../host-passwd")


def _loop(path: Path) -> None:
    path.symlink_to("passwd")


@pytest.mark.parametrize(
    "make", [_fifo, _sparse, _long_line, _many_lines, _link_out, _loop, os.mkdir]
)
def test_a_hostile_file_counts_as_empty(tmp_path: Path, make: Callable[[Path], None]) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    make(root / "etc" / "passwd")
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        assert users.resolve("5", fd).home == "/"
        with pytest.raises(UsageError):
            users.resolve("web", fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("target", ["/dev/zero", "/proc/self/mem", "/proc/self/environ"])
def test_absolute_links_stay_inside(tmp_path: Path, rootfd: int, target: str) -> None:
    (tmp_path / "etc" / "passwd").symlink_to(target)
    assert users.resolve("5", rootfd).home == "/"


def test_no_descriptor_is_left_open(tmp_path: Path, rootfd: int) -> None:
    before = os.listdir("/proc/self/fd")
    os.mkfifo(tmp_path / "etc" / "passwd")
    users.resolve("5", rootfd)
    assert os.listdir("/proc/self/fd") == before
