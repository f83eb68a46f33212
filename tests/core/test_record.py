"""Records: frozen classes that compare by value."""

from __future__ import annotations

import copy
import pickle

import pytest

from worker._core.record import Record


class Base(Record, kw_only=True):
    """Has a field with a default before those of its subclass."""

    text: str
    level: int = 0


class Exit(Base, kw_only=True):
    """Has one more field of each kind."""

    code: int
    signal: str | None = None

    @property
    def is_ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.code == 0


class Twin(Base, kw_only=True):
    """Has the same fields."""

    code: int
    signal: str | None = None


class Empty(Record):
    """Has no field."""


class Pair(Record):
    """Takes its fields by position, too."""

    left: object
    right: object = ()


def test_fields_have_their_values_or_defaults() -> None:
    made = Exit(text="gone", code=1)
    assert (made.text, made.level, made.code, made.signal, made.is_ok) == ("gone", 0, 1, None, False)
    assert made.asdict() == {"text": "gone", "level": 0, "code": 1, "signal": None}
    assert repr(made) == "Exit(text='gone', level=0, code=1, signal=None)"
    assert Pair(1) == Pair(left=1, right=())


@pytest.mark.parametrize(
    ("values", "given"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"left": 1}), ((), {"right": 1}), ((1,), {"middle": 2})],
)
def test_missing_unknown_and_repeated_fields_are_refused(
    values: tuple[int, ...], given: dict[str, int]
) -> None:
    with pytest.raises(TypeError, match="Pair takes the fields left, right"):
        Pair(*values, **given)


def test_records_are_equal_and_hashed_by_class_and_value() -> None:
    one = Exit(text="gone", code=1)
    assert one == Exit(text="gone", code=1) != Exit(text="gone", code=2)
    assert hash(one) == hash(Exit(text="gone", code=1))
    assert one != Twin(text="gone", code=1)
    assert Empty() == Empty() != Pair(1)
    assert bool(Empty())


def test_a_record_cannot_be_changed() -> None:
    made = Pair(1)
    for change in (
        lambda: setattr(made, "left", 2),
        lambda: setattr(made, "other", 2),
        lambda: delattr(made, "left"),
    ):
        with pytest.raises(AttributeError):
            change()
    assert made == Pair(1)


def test_copies_are_equal_and_a_replaced_field_changes_one_of_them() -> None:
    made = Exit(text="gone", code=1, signal="SIGKILL")
    assert copy.copy(made) == copy.deepcopy(made) == pickle.loads(pickle.dumps(made)) == made
    assert made.replace(code=0) == Exit(text="gone", code=0, signal="SIGKILL")
    with pytest.raises(TypeError, match="takes the fields"):
        made.replace(codes=0)


def test_a_record_matches_by_position() -> None:
    match Pair(1, 2):
        case Pair(left, right):
            assert (left, right) == (1, 2)
