"""Every parser keeps its promise on its seeds, on what once broke it, and on a few mutations, the same each time."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.mutations import inputs
from fuzz.scaffold import Target, cases, load, names, promise

EXAMPLES = 40

CASES = [(name, path) for name in names() for path in cases(name)]


@cache
def target(name: str) -> Target:
    return load(name)


@pytest.mark.parametrize("name", names())
def test_good_input_is_accepted(name: str, tmp_path: Path) -> None:
    # The first seed is a good one: a target that refuses everything would keep every promise.
    assert promise(target(name), target(name).seeds[0], tmp_path)


@pytest.mark.parametrize("name", names())
def test_seeds_keep_the_promise(name: str) -> None:
    for seed in target(name).seeds:
        with tempfile.TemporaryDirectory() as folder:
            promise(target(name), seed, Path(folder))


@pytest.mark.parametrize(("name", "path"), CASES, ids=[f"{name}-{path.name}" for name, path in CASES])
def test_what_once_broke_it_does_no_more(name: str, path: Path, tmp_path: Path) -> None:
    promise(target(name), path.read_bytes(), tmp_path)


@pytest.mark.parametrize("name", names())
def test_mutated_input_keeps_the_promise(name: str) -> None:
    @settings(
        derandomize=True, database=None, deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        content = data.draw(inputs(target(name)))
        with tempfile.TemporaryDirectory() as folder:
            promise(target(name), content, Path(folder))

    check()
