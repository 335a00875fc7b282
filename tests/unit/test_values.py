"""Values made by our own ``dataclass`` are as good as the standard library's."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

import vmproxy.model
from vmproxy.model import ProxyURL
from vmproxy.values import dataclass


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value with every kind of field."""

    x: int
    label: str = "here"
    marks: tuple[int, ...] = dataclasses.field(default=(), compare=False)
    secret: str = dataclasses.field(default="", repr=False)
    seen: dict[str, int] = dataclasses.field(default_factory=dict, compare=False)


def test_fields_defaults_and_factories() -> None:
    """Fields are keyword-only, have their defaults, and a factory's value is each instance's own."""
    one, other = Point(x=1), Point(x=1)
    assert (one.x, one.label, one.marks, one.seen) == (1, "here", (), {})
    assert one.seen is not other.seen
    with pytest.raises(TypeError):
        Point(1)  # type: ignore[misc]
    with pytest.raises(TypeError):
        Point(x=1, y=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Point()  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["x", "label", "seen", "unknown"])
def test_a_value_is_frozen(name: str) -> None:
    """No field can be set or deleted once the value is made, and none can be added."""
    point = Point(x=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(point, name, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        delattr(point, name)
    assert point == Point(x=1)


def test_equality_and_hash_are_by_compared_fields() -> None:
    """Equal fields are equal values of one hash; fields left out of the comparison do not count; other kinds differ."""
    assert Point(x=1, marks=(1,)) == Point(x=1, marks=(2,))
    assert hash(Point(x=1, marks=(1,))) == hash(Point(x=1, marks=(2,)))
    assert Point(x=1) != Point(x=2)
    assert Point(x=1) != (1, "here", "")
    assert len({Point(x=1), Point(x=1), Point(x=2)}) == 2


def test_repr_shows_fields_but_no_secret() -> None:
    """``repr`` has the class and its fields, without those that must not show."""
    shown = repr(Point(x=1, secret="hush"))
    assert shown == "Point(x=1, label='here', marks=(), seen={})"


def test_replace_copy_and_pickle() -> None:
    """``dataclasses.replace``, ``copy`` and ``pickle`` give equal values that are frozen too."""
    url = ProxyURL(scheme="http", host="10.0.2.2", port=8123, password="hush")
    assert dataclasses.replace(url, port=1).port == 1
    for same in (copy.copy(url), copy.deepcopy(url), pickle.loads(pickle.dumps(url))):
        assert same == url and same is not url
        with pytest.raises(dataclasses.FrozenInstanceError):
            same.port = 2  # type: ignore[misc]


def test_what_a_class_says_itself_stands() -> None:
    """A method in the class's own body is not replaced."""

    @dataclass(frozen=True, kw_only=True)
    class Loud:
        word: str

        def __repr__(self) -> str:
            return self.word.upper()

    assert repr(Loud(word="hey")) == "HEY"


def test_only_frozen_keyword_only_values_are_made() -> None:
    """Anything else is the standard library's business."""
    with pytest.raises(TypeError, match="frozen"):
        dataclass(frozen=False, kw_only=True)


def test_every_value_of_the_model_is_frozen() -> None:
    """No class of ``vmproxy.model`` slips through."""
    made = [kind for kind in vars(vmproxy.model).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    assert len(made) > 20
    for kind in made:
        blank = object.__new__(kind)
        with pytest.raises(dataclasses.FrozenInstanceError):
            blank.no_such_field = 1
