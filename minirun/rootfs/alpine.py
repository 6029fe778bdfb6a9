"""What Alpine publishes: branches, release lists, file names, checksums, and what is pinned here.

A mirror has, per branch and architecture, `BRANCH/releases/ARCH/latest-releases.yaml` (its newest
releases with checksums) and beside each file FILE its FILE.sha256 and FILE.sha512.
"""

from __future__ import annotations

import os
import re

import yaml

from minirun import jsontext
from minirun.errors import MinirunError, UsageError
from minirun.rootfs import download

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Fetch = Callable[[str], bytes]

ARCHITECTURES = ("x86_64", "aarch64")

_VERSION = re.compile(r"v?((?P<branch>[0-9]{1,3}\.[0-9]{1,3})(\.[0-9]{1,3}(_rc[0-9]{1,3})?)?)")
_SNAPSHOT = re.compile(r"20[0-9]{6}")
_HEX = re.compile(r"[0-9a-f]+")
_LENGTHS = {"sha256": 64, "sha512": 128}


class Release:
    """One tarball: its version, file name, URL, digests by algorithm, and size (0: not known)."""

    def __init__(self, version: str, file: str, url: str, digests: dict[str, str]) -> None:
        self.version = version
        self.file = file
        self.url = url
        self.digests = digests
        self.size = 0
        self.pinned = False


class Catalogue:
    """rootfs/alpine.json: the default mirror, the flavour, and digests known beforehand."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        value = jsontext.read(os.path.join(directory, "alpine.json"), "rootfs/alpine.json")
        self.mirror: str = value["mirror"]
        self.flavor: str = value["flavor"]
        self.pins: dict[str, dict[str, str]] = value["pins"]

    def file(self, version: str, architecture: str) -> str:
        """Give the name of a release's tarball."""
        return f"{self.flavor}-{version}-{architecture}.tar.gz"

    def version_of(self, file: str, architecture: str) -> str:
        """Read the version out of a tarball's name; empty if it is not one of this flavour."""
        start, end = f"{self.flavor}-", f"-{architecture}.tar.gz"
        version = file[len(start) : -len(end)]
        known = file.startswith(start) and file.endswith(end) and is_release(version)
        return version if known else ""


def catalogue() -> Catalogue:
    """Read the catalogue: package data when installed, the project's rootfs/ in a checkout."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    places = (os.path.join(package, "pins"), os.path.join(os.path.dirname(package), "rootfs"))
    for place in places:
        if os.path.isfile(os.path.join(place, "alpine.json")):
            return Catalogue(place)
    raise MinirunError(f"alpine.json is missing, looked in {' and '.join(places)}")


def architecture(asked: str | None = None) -> str:
    """Give Alpine's name of the architecture asked for, else this machine's."""
    found = asked or os.uname().machine
    if found not in ARCHITECTURES:
        raise MinirunError(
            f"architecture {found} is not supported",
            fix=f"supported are {' and '.join(ARCHITECTURES)}",
        )
    return found


def check_version(version: str) -> str:
    """Return a version as Alpine writes it (3.20, 3.20.3, edge, latest, a snapshot's date)."""
    if version in ("", "latest", "edge") or _SNAPSHOT.fullmatch(version):
        return version
    match = _VERSION.fullmatch(version)
    if match is None:
        raise UsageError(
            f"invalid Alpine version {version!r}",
            cause="a version is 3.20, 3.20.3, edge or latest",
        )
    return match[1]


def is_release(version: str) -> bool:
    """Tell whether a version names one release rather than the newest of a branch."""
    match = _VERSION.fullmatch(version)
    return bool(_SNAPSHOT.fullmatch(version) or (match and match[3] and match[1] == version))


def satisfies(release: str, version: str) -> bool:
    """Tell whether a release is what was asked for; any is when no version was."""
    if version in ("", "latest"):
        return True
    if version == "edge":
        return bool(_SNAPSHOT.fullmatch(release))
    return release == version or release.startswith(f"{version}.")


def order(release: str) -> list[int]:
    """Give the key that sorts releases from old to new; a release candidate is before its release.

    Snapshots of edge come before all: they are not releases.
    """
    if _SNAPSHOT.fullmatch(release):
        return [0, int(release)]
    numbers, _, candidate = release.partition("_rc")
    return [1, *map(int, numbers.split(".")), int(candidate or 10**6)]


def resolve(
    known: Catalogue, mirror: str, version: str, arch: str, fetch: Fetch = download.fetch
) -> Release:
    """Find out which tarball a version means, and its digests. `version` is a checked one.

    Raises MinirunError if the mirror does not have it or says nonsense.
    """
    if is_release(version):
        release = _exact(known, mirror, version, arch, fetch)
    else:
        release = _newest(known, mirror, version, arch, fetch)
    pins = known.pins.get(release.file)
    for name, pin in (pins or {}).items():
        if release.digests.setdefault(name, pin) != pin:
            raise MinirunError(
                f"the mirror's {name} of {release.file} is not the pinned one",
                cause=f"the mirror says {release.digests[name]}, the pin is {pin}",
                fix="do not use this mirror",
            )
    release.pinned = bool(pins)
    return release


def _newest(known: Catalogue, mirror: str, version: str, arch: str, fetch: Fetch) -> Release:
    branch = {"": "latest-stable", "latest": "latest-stable", "edge": "edge"}.get(version)
    folder = f"{mirror}/{branch or 'v' + version}/releases/{arch}"
    url = f"{folder}/latest-releases.yaml"
    try:
        text = fetch(url)
    except download.NotFound:
        raise MinirunError(
            f"the mirror has no Alpine {version or 'release list'} for {arch}",
            cause=f"{url} does not exist",
            fix="look which there are at https://alpinelinux.org/releases/",
        ) from None
    for item in _items(text, url):
        if item.get("flavor") == known.flavor and item.get("arch", arch) == arch:
            return _listed(known, folder, item, arch, url)
    raise MinirunError(f"{url} lists no {known.flavor}")


def _items(text: bytes, url: str) -> list[dict[str, Any]]:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise MinirunError(f"{url} is not a release list") from None
    if not isinstance(value, list):
        raise MinirunError(f"{url} is not a release list")
    return [item for item in value if isinstance(item, dict)]


def _listed(known: Catalogue, folder: str, item: dict[str, Any], arch: str, url: str) -> Release:
    version = str(item.get("version"))  # a snapshot's date is a number to YAML
    file = known.file(version, arch)
    if not is_release(version) or item.get("file") != file:
        raise MinirunError(f"{url} lists a {known.flavor} with an unexpected file name")
    digests = {
        name: str(item[name]).lower()
        for name, length in _LENGTHS.items()
        if len(str(item.get(name))) == length and _HEX.fullmatch(str(item[name]).lower())
    }
    if not digests:
        raise MinirunError(f"{url} gives no checksum for {file}")
    release = Release(version, file, f"{folder}/{file}", digests)
    size = item.get("size")
    release.size = size if type(size) is int and size > 0 else 0
    return release


def _exact(known: Catalogue, mirror: str, version: str, arch: str, fetch: Fetch) -> Release:
    match = _VERSION.fullmatch(version)
    branch = f"v{match['branch']}" if match else "edge"
    file = known.file(version, arch)
    url = f"{mirror}/{branch}/releases/{arch}/{file}"
    if file in known.pins:
        return Release(version, file, url, {})
    for name, length in _LENGTHS.items():
        try:
            words = fetch(f"{url}.{name}").decode("ascii", "replace").split()
        except download.NotFound:
            continue
        digest = words[0].lower() if words else ""
        if len(digest) != length or not _HEX.fullmatch(digest):
            raise MinirunError(f"{url}.{name} holds no {name} checksum")
        return Release(version, file, url, {name: digest})
    raise MinirunError(
        f"the mirror has no Alpine {version} for {arch}",
        cause=f"{url}.sha256 does not exist",
        fix="look which there are at https://alpinelinux.org/releases/",
    )
