"""What a bind has of its source's attributes: the cases of runc's mounts_sshfs.bats, on a tmpfs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from runtime import Box

pytestmark = pytest.mark.requires("root", "programs", "unshare")

# The source's attributes, the bind's options, what the mount has then and has not.
PLAIN = [
    ("ro,noexec,nosymfollow,nodiratime", "", "ro noexec nosymfollow nodiratime", "rw"),
    ("ro,noexec,nosymfollow,nodiratime", "dev", "rw nodiratime", "ro noexec nosymfollow"),
    ("ro", "nosuid,nodev,rprivate", "rw nosuid nodev", "ro"),
    ("ro", "rw,nosuid,nodev", "rw nosuid nodev", "ro"),
    ("nosuid,nodev,noexec,noatime", "dev,suid,exec,atime", "rw noatime", "nosuid nodev noexec"),
    ("nodev,nosuid,noexec,noatime", "ro", "ro noatime", "nosuid nodev noexec"),
    ("nodev,nosymfollow", "ro,symfollow", "ro", "nodev nosymfollow"),
    ("nodev,nosuid,noatime", "ro,exec", "ro noatime", "nosuid nodev noexec"),
    ("noatime", "norelatime", "noatime", "relatime"),
    ("noatime", "atime", "noatime", "relatime"),
    ("noatime", "relatime", "relatime", "noatime"),
    ("noatime", "nodiratime", "nodiratime relatime", "noatime"),
    ("nodiratime", "strictatime", "rw", "noatime relatime nodiratime"),
    ("noatime", "nodiratime,strictatime", "nodiratime", "noatime relatime"),
    ("noatime", "nodiratime,norelatime", "nodiratime relatime", "noatime"),
    ("noatime", "rprivate", "noatime", "relatime"),
]
# In a user namespace what the kernel would have locked stays, unless an option says otherwise.
INSIDE = [
    ("ro,noexec,nosymfollow,nodiratime", "", "ro noexec nosymfollow nodiratime", "rw"),
    ("ro,noexec,nosymfollow,nodiratime", "dev", "ro noexec nodiratime", "rw nosymfollow"),
    ("ro", "nosuid,nodev,rprivate", "ro nosuid nodev", "rw"),
    ("nodev,nosuid,noexec,noatime", "ro", "ro nosuid nodev noexec noatime", "rw"),
    ("nodev,nosymfollow", "ro,symfollow", "ro nodev", "rw nosymfollow"),
    ("nodev,nosymfollow", "rw", "rw nodev", "ro nosymfollow"),
    ("nodev,nosuid,noatime", "ro,exec", "ro nosuid nodev noatime", "rw noexec"),
    ("strictatime", "", "rw", "noatime relatime nodiratime"),
    ("relatime", "", "relatime", "noatime"),
    ("nodiratime", "", "nodiratime relatime", "noatime"),
    ("noatime,nodiratime", "norelatime", "noatime nodiratime", "relatime"),
    ("strictatime", "nostrictatime", "rw", "noatime relatime nodiratime"),
    ("nodiratime", "diratime", "nodiratime", "noatime"),
    ("noatime,nodiratime", "atime", "noatime nodiratime", "relatime"),
]
REFUSED = [
    ("ro", "rw,nosuid,nodev"),
    ("nodev,nosuid,noatime", "dev,suid,exec,atime"),
    *(("nodiratime", option) for option in ("strictatime", "noatime")),
    *(("relatime", option) for option in ("strictatime", "noatime", "nodiratime")),
    *(("strictatime", option) for option in ("relatime", "noatime", "nodiratime")),
    *(("noatime", option) for option in ("strictatime", "relatime")),
]


def bound(box: Box, attributes: str, options: str) -> None:
    """Bind a tmpfs with these attributes; it is gone with its mount namespace."""
    source = box.place / "source"
    source.mkdir()
    prepare = (
        'mount -t tmpfs -o strictatime tmpfs "$0" && '
        'mount --bind -o remount,diratime,strictatime "$0" && '
        f'mount --bind -o remount,{attributes} "$0" && exec "$@"'
    )
    box.command = ["unshare", "--mount", "sh", "-c", prepare, str(source), *box.command]
    box.mount("/vol", str(source), "bind", *filter(None, options.split(",")))


def check(box: Box, present: str, absent: str) -> None:
    found = box.probe().mounts["/vol"].options
    assert set(present.split()) <= found, found
    assert not set(absent.split()) & found, found


@pytest.mark.parametrize(("attributes", "options", "present", "absent"), PLAIN)
def test_what_is_asked_for_replaces_it(
    box: Box, attributes: str, options: str, present: str, absent: str
) -> None:
    bound(box, attributes, options)
    check(box, present, absent)


@pytest.mark.requires("userns")
@pytest.mark.parametrize(("attributes", "options", "present", "absent"), INSIDE)
def test_in_a_user_namespace(
    box: Box, attributes: str, options: str, present: str, absent: str
) -> None:
    box.user_namespace()
    bound(box, attributes, options)
    check(box, present, absent)


@pytest.mark.requires("userns")
@pytest.mark.parametrize(("attributes", "options"), REFUSED)
def test_what_a_user_namespace_may_not_have(box: Box, attributes: str, options: str) -> None:
    box.user_namespace()
    bound(box, attributes, options)
    box.refused("operation not permitted")
