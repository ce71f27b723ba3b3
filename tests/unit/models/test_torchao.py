"""Teachers that torchao quantises, their experts included where the configuration names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from preceptor.models.load import load_model
from preceptor.recipe import ModelSpec
from preceptor.signals import Wanted
from preceptor.teachers import ModelTeacher

pytest.importorskip("torchao")


def stored(tensor: Any) -> int:
    """Bytes of a tensor, or of those that one of torchao's is made of."""
    if type(tensor) is torch.Tensor:
        return tensor.nbytes
    return sum(stored(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


@pytest.mark.filterwarnings("ignore")
def test_experts_in_int8(tmp_path: Path) -> None:
    from torchao.core.config import config_to_dict
    from torchao.quantization import FqnToConfig, Int8WeightOnlyConfig

    toys.sparse("mixtral", 0, hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    each = Int8WeightOnlyConfig()
    config = FqnToConfig({r"re:.*experts\.(gate_up|down)_proj": each, "_default": each})
    quantization = {"quant_method": "torchao", "quant_type": {"default": config_to_dict(config)}}
    model = load_model(ModelSpec(path=str(tmp_path), quantization=quantization), role="teacher")
    plain = load_model(ModelSpec(path=str(tmp_path)), role="teacher")
    experts = [name for name, _ in plain.named_parameters() if ".experts." in name]
    assert len(experts) == 4
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            packed = model.get_parameter(name).data
            if name in experts:
                assert stored(packed) < 0.3 * parameter.nbytes
            if type(packed) is not torch.Tensor:
                parameter.copy_(packed.dequantize())
    plain.set_experts_implementation("eager")
    batch = toys.batch([[row] for row in toys.rows(1, [9, 6, 11], [4, 0, 5])])
    got, expected = (ModelTeacher(each).observe(batch, Wanted(logits=True)).hidden_ND for each in (model, plain))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
