"""What compiles kernels ahead of time describes every argument they have."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import preceptor.kernels

pytest.importorskip("triton")
MODULES = [each.name for each in pkgutil.iter_modules(preceptor.kernels.__path__) if each.name.endswith("_triton")]


@pytest.mark.parametrize("module", MODULES)
def test_every_argument_has_a_type_or_a_value(module: str) -> None:
    specs = list(importlib.import_module(f"preceptor.kernels.{module}").ahead())
    assert specs
    for spec in specs:
        arguments = list(inspect.signature(spec.kernel.fn).parameters)
        assert list(spec.signature) == arguments, spec.name
        fixed = {name for name, kind in spec.signature.items() if kind == "constexpr"}
        assert fixed == set(spec.constexprs), spec.name
        assert set(spec.multiples_of_16) <= set(arguments) - fixed, spec.name
