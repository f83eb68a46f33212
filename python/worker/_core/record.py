"""Frozen classes that compare by value, like frozen dataclasses, and are cheap to import.

A frozen dataclass compiles six functions when it is defined, for 0.3 ms. The main process needs almost a
hundred such classes before it serves. A record inherits these functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Part of `typing` since Python 3.11.
    from collections.abc import Callable

    from typing_extensions import Self, dataclass_transform
else:

    def dataclass_transform(**options: bool) -> Callable[[type], type]:
        return lambda cls: cls


__all__ = ["Record"]

_set = object.__setattr__


@dataclass_transform(frozen_default=True)
class _RecordType(type):
    """Makes the annotated names in the body of a class its fields, each with a slot.

    Attributes:
        _defaults: The values of the fields that have one.
    """

    __match_args__: tuple[str, ...] = ()
    _defaults: dict[str, Any] = {}  # noqa: RUF012

    def __new__(
        mcs, name: str, bases: tuple[_RecordType, ...], namespace: dict[str, Any], **options: bool
    ) -> _RecordType:
        """Make a class. The option ``kw_only`` is that of a dataclass, for type checkers alone."""
        slots = fields = tuple(namespace.get("__annotations__", ()))
        # As an attribute of the class, a default would be in the way of the slot.
        defaults = {field: namespace.pop(field) for field in slots if field in namespace}
        for base in bases:
            fields, defaults = base.__match_args__ + fields, base._defaults | defaults
        made = {**namespace, "__slots__": slots, "__match_args__": fields, "_defaults": defaults}
        return super().__new__(mcs, name, bases, made)


class Record(metaclass=_RecordType):
    """The base class of records. A subclass lists its fields as a dataclass does.

    Its objects take the fields by position or name. They are frozen and hashed by value, and equal to objects
    of the same class with equal fields.

    Raises:
        TypeError: A field is missing, unknown, or given twice.
    """

    def __init__(self, *values: Any, **given: Any) -> None:
        cls = type(self)
        names = cls.__match_args__
        taken = dict(zip(names, values, strict=False)) | given
        fields = cls._defaults | taken
        try:
            if len(taken) < len(values) + len(given) or len(fields) < len(names):
                raise AttributeError
            for name, value in fields.items():
                _set(self, name, value)
        except AttributeError:
            # Too many or too few; or there is no slot of that name.
            raise TypeError(f"{cls.__name__} takes the fields {', '.join(names) or '(none)'}") from None

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return type(self)(**{**self.asdict(), **changes})

    def asdict(self) -> dict[str, Any]:
        """Return the values of the fields by name."""
        return {name: getattr(self, name) for name in type(self).__match_args__}

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self.asdict().items())
        return f"{type(self).__name__}({fields})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._values()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"cannot change {name}: a {type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"cannot delete {name}: a {type(self).__name__} is frozen")

    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, name) for name in type(self).__match_args__])
