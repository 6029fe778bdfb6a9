"""IPv4 addresses and the names that become file and link names, read strictly.

Without `ipaddress` and `re`, which would cost `run` more than the network's whole plan.
"""

from __future__ import annotations

import os

from minirun.errors import UsageError

NAME_MAX = 12  # a link's name has 15 bytes (IFNAMSIZ - 1), three of them are "mr-"
ID_MAX = 1024  # of a container, as runc has it; what is shown of it is cut
DEFAULT_NETWORK = "default"
DEFAULT_BRIDGE = "minirun0"
DEFAULT_SUBNET = "10.42.0.0/16"
LOOPBACK = (0x7F000000, 8)

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ALNUM = _LETTERS + "0123456789"


def number(text: str, low: int, high: int, what: str, fix: str = "") -> int:
    """Read a decimal number in [low, high]; int() would also take ` ٣ `, `+3` and `1_000`."""
    if not (0 < len(text) <= 10 and all("0" <= char <= "9" for char in text)):
        raise UsageError(f"{what} must be a number, not {text!r}", fix=fix)
    value = int(text)
    if not low <= value <= high:
        raise UsageError(f"{what} must be from {low} to {high}, not {value}", fix=fix)
    return value


def parse(text: str) -> int:
    """Read a dotted IPv4 address; leading zeroes, which some read as octal, are refused."""
    parts = text.split(".")
    if len(parts) != 4 or any(len(part) > 1 and part[0] == "0" for part in parts):
        raise UsageError(f"not an IPv4 address: {text!r}")
    value = 0
    for part in parts:
        if not (0 < len(part) <= 3 and all("0" <= char <= "9" for char in part)) or int(part) > 255:
            raise UsageError(f"not an IPv4 address: {text!r}")
        value = value << 8 | int(part)
    return value


def is_ipv4(text: str) -> bool:
    """Tell whether `text` is a dotted IPv4 address."""
    try:
        parse(text)
    except UsageError:
        return False
    return True


def show(value: int) -> str:
    """Write an address with dots."""
    return ".".join(str(value >> shift & 255) for shift in (24, 16, 8, 0))


def parse_subnet(text: str) -> tuple[int, int]:
    """Read `10.42.0.0/16` as (network address, prefix length).

    Raises UsageError for host bits that are set, and for a prefix outside 8 to 30: a /31 has no
    room for the gateway and one container.
    """
    address, slash, length = text.partition("/")
    prefix = number(length, 8, 30, f"prefix length of {text!r}") if slash else 0
    if not slash:
        raise UsageError(f"not a subnet such as {DEFAULT_SUBNET}: {text!r}")
    value = parse(address)
    if value & (1 << 32 - prefix) - 1:
        raise UsageError(f"subnet {text!r} has host bits set")
    return value, prefix


def overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Tell whether two subnets, as (network, prefix length), share an address."""
    shift = 32 - min(one[1], other[1])
    return one[0] >> shift == other[0] >> shift


def contains(subnet: tuple[int, int], address: int) -> bool:
    """Tell whether `address` lies in `subnet`."""
    return overlap(subnet, (address, 32))


def gateway(subnet: tuple[int, int]) -> int:
    """Give the bridge's own address: the first of the subnet."""
    return subnet[0] + 1


def mac(address: int) -> str:
    """Give the hardware address of who has this IPv4 address.

    Made from the address, an address that is leased again never meets a stale ARP entry. Locally
    administered (bit 1 of the first byte).
    """
    return "02:6d:" + ":".join(f"{address >> shift & 255:02x}" for shift in (24, 16, 8, 0))


def random_mac() -> str:
    """Give a random locally administered hardware address, by which a link is known as ours."""
    return "02:6e:" + ":".join(f"{byte:02x}" for byte in os.urandom(4))


def link_name(network: str, container: str) -> str:
    """Give the host's end of a container's link: stable, 14 bytes, for people to recognise."""
    import hashlib  # OpenSSL: 8 ms that only the hook pays

    digest = hashlib.sha256(f"{network}/{container}".encode()).hexdigest()
    return "mr" + digest[:12]


def check_network(name: str) -> str:
    """Return a network's name, or raise UsageError: it becomes a directory and part of a link."""
    if not (
        0 < len(name) <= NAME_MAX
        and all(char in _ALNUM + "_.-" for char in name)
        and name[0] in _ALNUM
        and ".." not in name
    ):
        raise UsageError(
            f"invalid network name {name!r}",
            cause=f"it must be 1 to {NAME_MAX} letters, digits, '_', '.' or '-', and begin with a "
            "letter or digit: it becomes part of a link's name",
        )
    return name


def check_bridge(name: str) -> str:
    """Return a bridge's name, or raise UsageError; the kernel would take `br;x` and `all`."""
    if not (
        0 < len(name) <= 15
        and all(char in _ALNUM + "_-" for char in name)
        and name[0] in _ALNUM
        and name not in ("all", "default", "lo")
    ):
        raise UsageError(f"invalid bridge name {name!r}")
    return name


def bridge_of(network: str) -> str:
    """Give the bridge that a network has unless told otherwise."""
    return DEFAULT_BRIDGE if network == DEFAULT_NETWORK else "mr-" + network.replace(".", "-")


def check_container(name: str) -> str:
    """Return a container's ID, or raise UsageError: it becomes a file's content and a comment."""
    if not (0 < len(name) <= ID_MAX and all(char in _ALNUM + "_+.-" for char in name)):
        raise UsageError(f"invalid container id {name!r}")
    if name in (".", ".."):
        raise UsageError(f"invalid container id {name!r}")
    return name


def is_hostname(name: str) -> bool:
    """Tell whether `name` may stand in a hosts file: letters, digits, '-', '_' and dots."""
    return (
        0 < len(name) <= 253
        and all(0 < len(label) <= 63 for label in name.split("."))
        and all(char in _ALNUM + "_.-" for char in name)
        and name[0] in _ALNUM + "_"
    )
