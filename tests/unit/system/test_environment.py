"""Environment variables are what they were after the block, however that ends."""

from __future__ import annotations

import os

import pytest

from preceptor.system.environment import environment_kept


def test_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THERE", "before")
    monkeypatch.setenv("KEPT", "before")
    monkeypatch.delenv("ABSENT", raising=False)
    monkeypatch.delenv("NEW", raising=False)

    def changed() -> None:
        with environment_kept("KEPT", "NEW", THERE="inside", ABSENT="inside"):
            assert (os.environ["THERE"], os.environ["ABSENT"], os.environ["KEPT"]) == ("inside", "inside", "before")
            del os.environ["KEPT"], os.environ["ABSENT"]
            os.environ["NEW"] = "inside"
            raise LookupError

    with pytest.raises(LookupError):
        changed()
    assert (os.environ["THERE"], os.environ["KEPT"]) == ("before", "before")
    assert not {"ABSENT", "NEW"} & os.environ.keys()
