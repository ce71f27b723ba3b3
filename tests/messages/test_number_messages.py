"""The ends of a range that a number may not take are named."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from preceptor.recipe.base import real


@pytest.mark.parametrize(
    ("bounds", "refused", "wanted"),
    [
        ({"high": 1.0}, [-0.1, 1.1], "a number from 0 to 1"),
        ({"high": 1.0, "above": True}, [0, 1.1], "a number from 0 to 1 (0 excluded)"),
        ({"high": 1.0, "below": True}, [-0.1, 1], "a number from 0 to 1 (1 excluded)"),
        ({"high": 1.0, "above": True, "below": True}, [0, 1], "a number from 0 to 1 (ends excluded)"),
        ({}, [-0.1, float("nan")], "a number of at least 0"),
        ({"above": True}, [0, float("inf")], "a number above 0"),
    ],
    ids=str,
)
def test_what_is_wanted_is_what_is_accepted(bounds: dict[str, Any], refused: list[float], wanted: str) -> None:
    checked = TypeAdapter(Annotated[float, real(0.0, **bounds)])
    assert checked.validate_python(0.5) == 0.5
    for value in refused:
        with pytest.raises(ValidationError) as error:
            checked.validate_python(value)
        assert error.value.errors()[0]["msg"] == f"write {wanted}"
