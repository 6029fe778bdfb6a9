"""The driver that has systemd make the cgroup: a transient scope, over D-Bus.

systemd is the only writer of the tree above the scope; what is below is delegated to the container
(systemd's CGROUP_DELEGATION document). A scope begins with a process and ends with its last one, so
the container's first process is made before it and waits. Beside `cgroupfs`: the Group in the scope
is limited, frozen, killed and counted alike; limits are told to systemd as well.
"""

from __future__ import annotations

import errno
import os

from minirun import dbus
from minirun.cgroups import properties
from minirun.cgroups.group import Group, open_group
from minirun.cgroups.hierarchy import Hierarchy, path_of
from minirun.cgroups.unitname import Unit, unit_of
from minirun.errors import MinirunError, StateError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from minirun.cgroups.properties import Property, Which
    from minirun.cgroups.resources import Write

NAME = "org.freedesktop.systemd1"
_OBJECT = "/org/freedesktop/systemd1"
_MANAGER = f"{NAME}.Manager"
SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
SYSTEM_PRIVATE = "/run/systemd/private"
_JOB_REMOVED = 4  # what the signal tells: number, path, unit, result
_RULE = f"type='signal',sender='{NAME}',path='{_OBJECT}',interface='{_MANAGER}',member='JobRemoved'"

# Error names: systemd's are stable, its texts are not.
_EXISTS = f"{NAME}.UnitExists"
_GONE = (f"{NAME}.NoSuchUnit", f"{NAME}.NotLoaded")


class Scope:
    """The unit of one container: started, told limits, stopped. `user`: of a user's manager.

    The connection is made with the first call and kept until `close`.
    """

    def __init__(self, unit: Unit, *, user: bool, extra: Sequence[Property] = ()) -> None:
        self.unit = unit
        self.user = user
        self.extra = list(extra)
        self.below = ""  # where `attach` puts a process: a cgroup below the unit's, such as /init
        self._connection: dbus.Connection | None = None
        self._devices: list[Property] = []

    def close(self) -> None:
        """Close the connection; may be called twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _call(self, method: str, signature: str = "", *values: Any) -> tuple[Any, ...]:
        if self._connection is None:
            self._connection = connect(user=self.user)
        return self._connection.call(NAME, _OBJECT, f"{_MANAGER}.{method}", signature, *values)

    # -- its life

    def start(self, pid: int) -> None:
        """Have the unit made with process `pid` in it, and wait until that is done.

        Raises StateError if a unit of that name is there, MinirunError for what systemd refuses.
        """
        try:
            self._start(pid)
        except dbus.DBusError as error:
            if error.name != _EXISTS:
                raise self._failed("unable to start unit", error) from error
            # The remains of one that failed keep the name until somebody has taken notice.
            self.reset_failed()
            self._start_again(pid)

    def _start_again(self, pid: int) -> None:
        try:
            self._start(pid)
        except dbus.DBusError as error:
            failure = self._failed("unable to start unit", error)
            if error.name == _EXISTS:
                raise StateError(
                    failure.message,
                    cause="another container, or a service of the host, has a unit of that name",
                    fix=f"choose another ID, or systemctl {self._flag()}stop {self.unit.name}",
                ) from error
            raise failure from error

    def _start(self, pid: int) -> None:
        given = [(name, (kind, value)) for name, kind, value in self._properties(pid)]
        self._job("StartTransientUnit", "ssa(sv)a(sa(sv))", self.unit.name, "replace", given, [])

    def _properties(self, pid: int) -> list[Property]:
        if self.unit.is_slice:
            kind: list[Property] = [("Wants", "as", [self.unit.slice])]
        else:
            kind = [
                ("Slice", "s", self.unit.slice),
                ("Delegate", "b", True),
                ("PIDs", "au", [pid]),
            ]
        accounting = [f"{name}Accounting" for name in ("Memory", "CPU", "IO", "Tasks")]
        return [
            ("Description", "s", f"minirun container {self.unit.name}"),
            *kind,
            *[(name, "b", True) for name in accounting],
            # Else the unit would end before the host's services do, and wait for its own targets.
            ("DefaultDependencies", "b", False),
            *self.extra,
        ]

    def stop(self) -> None:
        """Stop the unit, which has no process any more, and wait; one that is gone is fine."""
        try:
            self._job("StopUnit", "ss", self.unit.name, "replace")
        except dbus.DBusError as error:
            if error.name not in _GONE:
                raise self._failed("unable to stop unit", error) from error
        self.reset_failed()

    def reset_failed(self) -> None:
        """Let systemd forget that the unit failed, so that its name is free."""
        try:
            self._call("ResetFailedUnit", "s", self.unit.name)
        except dbus.DBusError as error:
            if error.name not in _GONE:
                raise self._failed("unable to reset unit", error) from error

    def attach(self, pid: int) -> None:
        """Have systemd move process `pid` into the unit, where the caller may not."""
        try:
            self._call("AttachProcessesToUnit", "ssau", self.unit.name, self.below, [pid])
        except dbus.DBusError as error:
            raise self._failed("unable to attach a process to unit", error) from error

    # -- what holds in it

    def restrict_devices(self, allow: bool, exceptions: Mapping[Which, int]) -> None:
        """Note a device policy, to be told with the limits. A user's manager has no such means."""
        if not self.user:
            with open("/proc/devices", encoding="utf-8") as file:
                groups = properties.device_groups(file.read())
            self._devices = properties.of_devices(allow, exceptions, groups)

    def limit(self, planned: Sequence[Write]) -> None:
        """Tell systemd the limits that are about to be written, and the noted device policy."""
        given = [*self._devices, *properties.of_writes(planned, self.version)]
        self._devices = []
        if not given:
            return
        values = [(name, (signature, value)) for name, signature, value in given]
        try:
            self._call("SetUnitProperties", "sba(sv)", self.unit.name, True, values)
        except dbus.DBusError as error:
            raise self._failed("unable to set unit properties of", error) from error

    def version(self) -> int:
        """Return systemd's version, 0 if it does not say."""
        if self._connection is None:
            self._connection = connect(user=self.user)
        get = "org.freedesktop.DBus.Properties.Get"
        answer = self._connection.call(NAME, _OBJECT, get, "ss", _MANAGER, "Version")
        try:
            text = str(answer[0][1]).removeprefix("v")
        except (IndexError, TypeError):
            raise dbus.Malformed("an answer to Get without a value") from None
        digits = text[: next((n for n, char in enumerate(text) if not char.isdigit()), len(text))]
        return int(digits or 0)

    # --

    def _job(self, method: str, signature: str, *values: Any) -> None:
        """Call what answers with a job, and wait until that is done."""
        if self._connection is None:
            self._connection = connect(user=self.user)
        _listen(self._connection)
        answer = self._call(method, signature, *values)
        if len(answer) != 1:
            raise dbus.Malformed(f"an answer to {method} without a job")
        ended = self._connection.signal(
            lambda message: (
                message.member == "JobRemoved"
                and len(message.body) == _JOB_REMOVED
                and message.body[1] == answer[0]
            ),
            f"the job of {self.unit.name}",
        )
        result = str(ended.body[3])
        if result != "done":
            self.reset_failed()
            raise MinirunError(
                f'error with systemd unit "{self.unit.name}": {method} got "{result}"',
                cause=f"journalctl {self._flag()}-u {self.unit.name} may say why",
            )

    def _failed(self, what: str, error: dbus.DBusError) -> MinirunError:
        return MinirunError(
            f'{what} "{self.unit.name}": {error.message.rstrip(".").lower()}',
            cause=f"systemd answered {error.name}",
        )

    def _flag(self) -> str:
        return "--user " if self.user else ""


def _listen(connection: dbus.Connection) -> None:
    if connection.listening:
        return
    if connection.bus:
        bus = ("org.freedesktop.DBus", "/org/freedesktop/DBus")
        connection.call(*bus, "org.freedesktop.DBus.AddMatch", "s", _RULE)
    connection.call(NAME, _OBJECT, f"{_MANAGER}.Subscribe")
    connection.listening = True


def scope_of(
    cgroups_path: str | None, cid: str, annotations: Mapping[str, str], *, user: bool
) -> Scope:
    """Read which unit container `cid` is to have; nothing is asked of systemd yet.

    Raises ConfigError for a path or an annotation that cannot be.
    """
    unit = unit_of(cgroups_path, cid, user=user)
    return Scope(unit, user=user, extra=properties.of_annotations(annotations))


def existing(name: str, *, user: bool) -> Scope:
    """Give the unit `name` of a container that is there."""
    return Scope(Unit(name, "-.slice"), user=user)


def enter(scope: Scope, tree: Hierarchy, pid: int) -> Group:
    """Start the scope with process `pid` in it, and open its cgroup.

    Raises as `Scope.start`; what was started is stopped again if its cgroup cannot be found.
    """
    scope.start(pid)
    try:
        return _open(scope, tree, pid)
    except BaseException:
        scope.stop()
        raise


def _open(scope: Scope, tree: Hierarchy, pid: int) -> Group:
    if scope.unit.is_slice:
        # systemd puts no process into a slice; the slice is the container's own all the same.
        group = open_group(tree, scope.unit.path)
        if group is not None:
            group.add(pid)
            return group
    path = path_of(tree, pid)
    if path is None or os.path.basename(path) != scope.unit.name:
        raise MinirunError(
            f"systemd did not put the process into unit {scope.unit.name}",
            cause=f"it is in cgroup {path}: outside of what is mounted at {tree.mount}?",
        )
    group = open_group(tree, path)
    if group is None:
        raise MinirunError(f"the cgroup of unit {scope.unit.name} cannot be found")
    return group


# ---------------------------------------------------------------- the connection


def connect(*, user: bool) -> dbus.Connection:
    """Connect to the system's manager, or to that of the calling user.

    Through the bus, or where there is none by the manager's own socket, as systemctl does. Raises
    Unsupported saying what is missing.
    """
    failures = []
    for address, bus in _user_addresses() if user else _system_addresses():
        try:
            return dbus.Connection(dbus.address_of(address), bus=bus)
        except OSError as error:
            shown = address.removeprefix("unix:path=")
            failures.append(f"{shown}: {os.strerror(error.errno or errno.EIO).lower()}")
    tried = ", ".join(failures) or "neither DBUS_SESSION_BUS_ADDRESS nor XDG_RUNTIME_DIR is set"
    whose = "the systemd user manager" if user else "systemd"
    cause, fix = "systemd is not running here", "run without --systemd-cgroup"
    if user:
        cause = "there is no user session: su and sudo -u make none"
        fix = f"log in (ssh, machinectl shell USER@), with dbus-user-session installed; or {fix}"
    raise Unsupported(f"cannot reach {whose} over d-bus: {tried}", cause=cause, fix=fix)


def _system_addresses() -> list[tuple[str, bool]]:
    bus = os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") or SYSTEM_BUS
    return [(bus, True), (f"unix:path={SYSTEM_PRIVATE}", False)]


def _user_addresses() -> list[tuple[str, bool]]:
    found = []
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    bus = os.environ.get("DBUS_SESSION_BUS_ADDRESS") or (runtime and f"unix:path={runtime}/bus")
    if bus:
        found.append((bus, True))
    if runtime:
        found.append((f"unix:path={runtime}/systemd/private", False))
    return found
