"""Optimisers with 8-bit states: the bytes they keep, and trainings that are stopped and resumed with them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import toys
from invariant.trainers import Stop, StopAt, trainer, weights
from preceptor.errors import InputError
from preceptor.stages.build import check_training
from preceptor.training.checkpoints import last_checkpoint

# Weights of fewer than 4096 elements keep float32 states.
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 80}


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


KINDS = [
    pytest.param("adamw_bnb_8bit", marks=needs("bitsandbytes")),
    # torchao compiles its step.
    pytest.param("adamw_torch_8bit", marks=[needs("torchao"), pytest.mark.slow]),
]


def stored(value: Any) -> int:
    """Bytes of a state, or of the tensors that one of torchao's is made of."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return 0
    if type(value) is Tensor:
        return value.nbytes
    names, _ = value.__tensor_flatten__()
    return sum(stored(getattr(value, name)) for name in names if name != "qmap")


@pytest.mark.parametrize("optim", KINDS)
def test_8_bit_states_and_a_resumed_training(optim: str, tmp_path: Path) -> None:
    def make(folder: Path, *callbacks: Any) -> Any:
        return trainer(tmp_path / folder, *callbacks, model=toys.llama(1, **SIZES), optim=optim)

    whole = make(Path("whole"))
    whole.train()
    with pytest.raises(Stop):
        make(Path("parts"), StopAt(4)).train()
    torch.manual_seed(77)  # another process
    resumed = make(Path("parts"))
    resumed.train(resume_from_checkpoint=str(last_checkpoint(tmp_path / "parts/checkpoints")))
    expected = weights(whole.model)
    for name, each in weights(resumed.model).items():
        assert torch.equal(each, expected[name]), name
    assert not torch.equal(expected["lm_head.weight"], weights(toys.llama(1, **SIZES))["lm_head.weight"])

    optimizer = whole.optimizer.optimizer
    for name, parameter in whole.model.named_parameters():
        state = optimizer.state[parameter]
        moments = [value for key, value in state.items() if key in ("state1", "state2", "exp_avg", "exp_avg_sq")]
        assert len(moments) == 2
        large = parameter.numel() >= 4096 and (optim == "adamw_torch_8bit" or "embed" not in name)
        # A byte for a weight, and float32 scales of blocks of 256 beside it.
        scales = [value for key, value in state.items() if key.startswith("absmax")]
        expected_bytes = 2 * (parameter.numel() + 4 * parameter.numel() // 256) if large else 8 * parameter.numel()
        assert sum(map(stored, [*moments, *scales])) == expected_bytes, name


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_8bit"])
def test_a_package_that_is_not_installed(optim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("bitsandbytes", "torchao"):
        monkeypatch.setattr(f"transformers.trainer_optimizer.is_{package}_available", lambda: False)
    with pytest.raises(InputError) as refused:
        check_training({"optim": optim, "use_cpu": True})
    message = str(refused.value)
    assert message.startswith(f"training.optim: '{optim}' needs a package that is not installed (You need to ")
    assert message.endswith("; install it, or take adamw_torch, which needs none")


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "adafactor"])
def test_others_pass(optim: str) -> None:
    check_training({"optim": optim, "use_cpu": True})


@needs("bitsandbytes")
def test_bitsandbytes_does_not_cut_its_states(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError) as refused:
        check_training({"optim": "adamw_bnb_8bit", "use_cpu": True})
    assert str(refused.value) == (
        "training.optim: 'adamw_bnb_8bit' is of bitsandbytes, whose optimisers cannot update weights cut over several "
        "processes (FSDP); take adamw_torch_8bit of torchao, or adamw_torch"
    )
    check_training({"optim": "adamw_torch", "use_cpu": True})
