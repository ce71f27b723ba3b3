"""What torch.compile cannot do here is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch import Tensor, nn

import toys
from preceptor.errors import InputError
from preceptor.models.compiled import CompileOptions, compile_layers, compile_no_model, compile_options, compiles
from preceptor.stages.build import check_training

EAGER = CompileOptions("eager")


def arguments(folder: Path, **settings: Any) -> Any:
    return toys.training_arguments(output_dir=str(folder), use_cpu=True, **settings)


def test_nothing_is_compiled_unless_asked_for(tmp_path: Path) -> None:
    assert compile_options(arguments(tmp_path)) is None
    assert compile_options(arguments(tmp_path, torch_compile=True)) == CompileOptions("inductor", None)
    asked = arguments(tmp_path, torch_compile_mode="max-autotune-no-cudagraphs")
    assert compile_options(asked) == CompileOptions("inductor", "max-autotune-no-cudagraphs")


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_modes_with_cuda_graphs(mode: str) -> None:
    with pytest.raises(InputError) as caught:
        check_training({"torch_compile_mode": mode})
    assert str(caught.value) == (
        f"training.torch_compile_mode: {mode} replays recorded CUDA graphs, which would leave out the losses that are "
        "computed inside the layers; use the backend inductor without a mode, or with the mode "
        "max-autotune-no-cudagraphs"
    )


def test_unknown_backends_and_modes() -> None:
    with pytest.raises(InputError) as caught:
        CompileOptions("inductr")
    assert str(caught.value).startswith(
        "training.torch_compile_backend: 'inductr' is no backend of torch.compile here; accepted are "
    )
    assert "inductor" in str(caught.value)
    for backend, mode in (("inductor", "fastest"), ("aot_eager", "default")):
        with pytest.raises(InputError) as caught:
            CompileOptions(backend, mode)
        said = str(caught.value)
        assert said.startswith(f"training.torch_compile_mode: '{mode}' with the backend {backend}; accepted are ")
        assert said.endswith(", with the backend inductor")
        assert "max-autotune-no-cudagraphs" in said
        assert "reduce-overhead" not in said


def test_deepspeed() -> None:
    with pytest.raises(InputError) as caught:
        compile_options(SimpleNamespace(torch_compile=True, deepspeed={"zero_optimization": {}}))  # type: ignore[arg-type]
    assert str(caught.value) == (
        "training.torch_compile: cannot be combined with `deepspeed`, whose hooks inside the layers no graph can hold; "
        "leave one of the two out, or shard with `fsdp`"
    )


def test_accelerate_is_not_to_compile_by_itself() -> None:
    plugin = TorchDynamoPlugin(backend="inductor")
    accelerator: Any = SimpleNamespace(state=SimpleNamespace(dynamo_plugin=plugin))
    with pytest.raises(InputError) as caught:
        compile_no_model(accelerator, SimpleNamespace(torch_compile=False))  # type: ignore[arg-type]
    assert str(caught.value) == (
        "accelerate: its dynamo_backend is inductor, which compiles whole models, and the losses are computed inside "
        "them; set it to no and write `torch_compile: true` into `training`"
    )
    compile_no_model(accelerator, SimpleNamespace(torch_compile=True))  # type: ignore[arg-type]
    assert plugin.backend == DynamoBackend.NO


def test_a_model_without_layers() -> None:
    with pytest.raises(InputError) as caught:
        compile_layers(nn.Linear(2, 2), EAGER, name="student")
    assert str(caught.value) == (
        "training.torch_compile: student (Linear) has no decoder layers that could be compiled one by one "
        "(transformers' GradientCheckpointingLayer); leave `torch_compile` out"
    )


def test_layers_with_hooks() -> None:
    model = toys.llama(0)
    layer = model.model.layers[1]
    layer.forward = MethodType(type(layer).forward, layer)  # as accelerate's hooks of a device map do
    assert not compiles(model)
    with pytest.raises(InputError) as caught:
        compile_layers(model, EAGER, name="student")
    assert str(caught.value) == (
        "training.torch_compile: the layers of student are run by hooks such as those of `device_map`, which no graph "
        "can hold; leave `torch_compile` or the `device_map` out"
    )


def test_experts_in_a_loop() -> None:
    model = toys.sparse("mixtral", 0)
    assert not compiles(model)
    with pytest.raises(InputError) as caught:
        compile_layers(model, EAGER, name="student")
    assert str(caught.value) == (
        "training.torch_compile: the experts of student are called in a loop over those that are chosen, which no "
        "graph can hold; leave `torch_compile` out, or choose another implementation with "
        "model.set_experts_implementation('grouped_mm')"
    )
    model.set_experts_implementation("grouped_mm")
    assert compiles(model)


def test_quantised_experts() -> None:
    model = toys.sparse("mixtral", 0)
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(InputError) as caught:
        compile_layers(model, EAGER, name="student")
    assert str(caught.value) == (
        "training.torch_compile: the experts of student are called in a loop over those that are chosen, which no "
        "graph can hold; leave `torch_compile` out"
    )


class Peeking(nn.Module):
    """Decides by a value, which no graph can."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if float(x.sum()) > 0 else x


def test_layers_that_break_the_graph() -> None:
    model = toys.llama(0)
    for layer in model.model.layers:
        layer.mlp = Peeking()
    compile_layers(model, EAGER, name="student")
    with pytest.raises(InputError) as caught:
        model(torch.tensor([[1, 2, 3]]))
    said = str(caught.value)
    assert said.startswith("training.torch_compile: the LlamaDecoderLayer of student cannot be compiled whole (")
    assert said.endswith("); leave `torch_compile` out")
    assert "\n" not in said
    assert compiles(toys.llama(0))
