"""Immutable typed records read from JSON objects, without typing or dataclasses at run time.

Those cost an engine verb 26 and 40 ms. A record class lists its fields once:

    class Memory(Record):
        limit: int | None = integer(-1, INT64)
        check_before_update: bool = boolean(default=False)

The JSON name is the field's in camelCase unless given. Unknown JSON keys are ignored, as the
specification asks (config.md, "Extensibility"); a wrong type or range is a ConfigError that names
the field by its JSON path. `null` means absent, as Go's decoder has it.
"""

from __future__ import annotations

from minirun.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Self, dataclass_transform

    Decoder = Callable[[Any, str], Any]
else:

    def dataclass_transform(**_options):
        return lambda cls: cls


UINT32 = (1 << 32) - 1
INT64 = (1 << 63) - 1
UINT64 = (1 << 64) - 1


class Field:
    """How one field is read: its JSON name, its decoder, and its value when absent."""

    def __init__(self, decode: Decoder, default: Any, name: str | None, required: bool) -> None:
        self.decode = decode
        self.default = default
        self.name = name
        self.required = required


def _field(decode: Decoder, default: Any, name: str | None, required: bool) -> Any:
    return Field(decode, default, name, required)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(_field,))
class Record:
    """Base of the records; equality by value, `repr` shows what differs from the defaults."""

    _fields: Mapping[str, Field] = {}
    _by_name: Mapping[str, str] = {}

    def __init_subclass__(cls) -> None:
        fields = dict(cls._fields)
        for key, field in list(vars(cls).items()):
            if isinstance(field, Field):
                field.name = field.name or camel(key)
                fields[key] = field
                setattr(cls, key, field.default)
        cls._fields = fields
        names = {str(field.name): key for key, field in fields.items()}
        cls._by_name = {**{name.lower(): key for name, key in names.items()}, **names}

    def __init__(self, **values: Any) -> None:
        for key in values:
            if key not in self._fields:
                raise TypeError(f"{type(self).__name__} has no field {key}")
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            getattr(self, key) == getattr(other, key) for key in self._fields
        )

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={value!r}" for key, value in self.__dict__.items())
        return f"{type(self).__name__}({shown})"

    def replace(self, **values: Any) -> Self:
        """Return a copy with some fields changed."""
        return type(self)(**{**self.__dict__, **values})

    @classmethod
    def decode(cls, value: Any, path: str = "") -> Self:
        """Read the record from a JSON object. `path` is the object's own JSON path.

        Raises ConfigError, naming the field, for a wrong type, a value out of range, or a required
        field that is missing.
        """
        if not isinstance(value, dict):
            raise ConfigError(path or "config.json", f"must be an object, not {kind(value)}")
        values: dict[str, Any] = {}
        for name, item in value.items():
            # As in runc: whoever writes `CPU` for `cpu` is understood by it, and so by its users.
            key = cls._by_name.get(name) or cls._by_name.get(name.lower())
            if key is not None and item is not None:
                values[key] = cls._fields[key].decode(item, join(path, name))
        for key, field in cls._fields.items():
            if field.required and key not in values:
                raise ConfigError(join(path, str(field.name)), "is required")
        return cls(**values)

    def encode(self) -> dict[str, Any]:
        """Return the JSON object of the fields that were given, by their JSON names."""
        return {
            str(self._fields[key].name): _encode(value)
            for key, value in self.__dict__.items()
            if value is not None
        }


def _encode(value: Any) -> Any:
    if isinstance(value, Record):
        return value.encode()
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    return value


def camel(name: str) -> str:
    """Give a field's JSON name: `no_new_privileges` is `noNewPrivileges`."""
    return name[0] + name.title().replace("_", "")[1:] if "_" in name else name


def join(path: str, name: str) -> str:
    """Extend a JSON path by a property."""
    return f"{path}.{name}" if path else name


def kind(value: object) -> str:
    """Name a JSON value's type as people call it."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")


def decode_string(value: Any, path: str) -> str:
    """Read a string without NUL, at which the kernel would cut it."""
    if not isinstance(value, str):
        raise ConfigError(path, f"must be a string, not {kind(value)}")
    if "\0" in value:
        raise ConfigError(path, "must not hold a NUL byte")
    return value


def _integer_decoder(low: int, high: int) -> Decoder:
    def decode(value: Any, path: str) -> int:
        if type(value) is not int:  # True is an int to Python
            raise ConfigError(path, f"must be an integer, not {kind(value)} {value!r}"[:200])
        if not low <= value <= high:
            raise ConfigError(path, f"must be from {low} to {high}, not {value}")
        return value

    return decode


def _decode_boolean(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(path, f"must be true or false, not {kind(value)}")
    return value


def _decode_number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(path, f"must be a number, not {kind(value)}")
    return value


def _list_decoder(item: Decoder) -> Decoder:
    def decode(value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise ConfigError(path, f"must be an array, not {kind(value)}")
        return tuple([item(entry, f"{path}[{number}]") for number, entry in enumerate(value)])

    return decode


def _map_decoder(item: Decoder) -> Decoder:
    def decode(value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ConfigError(path, f"must be an object, not {kind(value)}")
        return {
            decode_string(key, path): item(entry, join(path, key)) for key, entry in value.items()
        }

    return decode


# The field specifiers. Each gives None when absent unless `default` is set.


def string(name: str | None = None, *, default: Any = None, required: bool = False) -> Any:
    """A string without NUL."""
    return _field(decode_string, default, name, required)


def integer(
    low: int, high: int, name: str | None = None, *, default: Any = None, required: bool = False
) -> Any:
    """An integer in [low, high]; 1.0 and true are refused."""
    return _field(_integer_decoder(low, high), default, name, required)


def number(name: str | None = None) -> Any:
    """An integer or a float."""
    return _field(_decode_number, None, name, required=False)


def boolean(name: str | None = None, *, default: Any = None) -> Any:
    """true or false."""
    return _field(_decode_boolean, default, name, required=False)


def anything(name: str | None = None) -> Any:
    """A value that is not looked into."""
    return _field(lambda value, _path: value, None, name, required=False)


def one(cls: Any, name: str | None = None, *, default: Any = None, required: bool = False) -> Any:
    """A nested record."""
    return _field(cls.decode, default, name, required)


def strings(name: str | None = None, *, default: Any = ()) -> Any:
    """A list of strings; () when absent unless `default` says None."""
    return _field(_list_decoder(decode_string), default, name, required=False)


def integers(low: int, high: int, name: str | None = None) -> Any:
    """A list of integers."""
    return _field(_list_decoder(_integer_decoder(low, high)), (), name, required=False)


def many(cls: Any, name: str | None = None, *, default: Any = ()) -> Any:
    """A list of records."""
    return _field(_list_decoder(cls.decode), default, name, required=False)


def string_map(name: str | None = None) -> Any:
    """An object whose values are strings."""
    return _field(_map_decoder(decode_string), {}, name, required=False)


def record_map(cls: Any, name: str | None = None) -> Any:
    """An object whose values are records."""
    return _field(_map_decoder(cls.decode), {}, name, required=False)
