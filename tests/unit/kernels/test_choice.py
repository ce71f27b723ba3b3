"""Which implementation of a kernel runs, and what is said where it cannot."""

from __future__ import annotations

import pytest
import torch

from preceptor.errors import InputError
from preceptor.kernels import choice
from preceptor.kernels.choice import VARIABLE, implementation, use_triton

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(choice, "_triton_installed", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_triton_on_cuda_and_nowhere_else() -> None:
    assert use_triton(CUDA)
    assert not use_triton(CPU)


@pytest.mark.parametrize(
    ("capability", "hip", "expected"), [((9, 0), None, True), ((7, 5), None, False), ((9, 4), "6", False)]
)
def test_a_gpu_that_the_kernels_were_not_made_for_runs_pytorchs_unless_asked(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], hip: str | None, expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(choice, "_recent", choice._recent.__wrapped__)
    assert use_triton(CUDA) is expected
    with implementation("triton"):
        assert use_triton(CUDA)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_triton_installed", lambda: False)
    assert not use_triton(CUDA)
    said = r"cannot run on cuda here \(not installed\); set it to auto, or install"
    with implementation("triton"), pytest.raises(InputError, match=said):
        use_triton(CUDA)


def test_the_interpreter_takes_cpu_tensors_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not use_triton(CPU)
    with implementation("triton"):
        assert use_triton(CPU)


def test_a_block_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "torch")
    assert not use_triton(CUDA)
    with implementation("triton"):
        assert use_triton(CUDA)
        with implementation("torch"):
            assert not use_triton(CUDA)
        assert use_triton(CUDA)
    assert not use_triton(CUDA)


def test_triton_by_name_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "triton")
    with pytest.raises(InputError) as caught:
        use_triton(CPU)
    assert str(caught.value) == (
        "environment variable PRECEPTOR_KERNELS is 'triton', but Triton cannot run on cpu here (no CUDA device); set "
        "it to auto, or install triton on a machine with an NVIDIA GPU"
    )


def test_an_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "tritn")
    with pytest.raises(InputError) as caught:
        use_triton(CUDA)
    assert str(caught.value) == (
        "environment variable PRECEPTOR_KERNELS is 'tritn'; accepted are auto, torch and triton (did you mean "
        "'triton'?)"
    )
