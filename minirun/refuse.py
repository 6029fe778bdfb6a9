"""How a configuration is refused: one line each, with the field's JSON path."""

from __future__ import annotations

from minirun.errors import ConfigError

NOT_YET = "is not supported yet"


def refuse_unless(condition: object, path: str, problem: str) -> None:
    """Raise ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(path, problem)


def unsupported_yet(path: str) -> ConfigError:
    """Make the error of a field that minirun does not support yet."""
    return ConfigError(path, NOT_YET)


def absolute(path: str, where: str) -> None:
    """Raise ConfigError unless the path is absolute."""
    refuse_unless(path.startswith("/"), where, f"must be an absolute path, not {path!r}")
