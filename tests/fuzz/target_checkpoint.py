"""A model's folder as it is looked at before anything is loaded: config, index, headers, and an adapter's config.

The first byte says which file the others are.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from fuzz.scaffold import Target
from preceptor.models.checkpoint import Checkpoint, check_adapter, check_model
from preceptor.recipe import ModelSpec

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 5,
}
WEIGHTS = {"embed": [5, 4], "up": [8, 4]}
INDEX = {"metadata": {}, "weight_map": {"embed": "model-1.safetensors"}}
ADAPTER = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": "x"}
FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "adapter/adapter_config.json")


def check(data: bytes, folder: Path) -> Checkpoint:
    kind = data[0] % len(FILES) if data else 0
    good = [json.dumps(CONFIG).encode(), _weights(), json.dumps(INDEX).encode(), json.dumps(ADAPTER).encode()]
    good[kind] = data[1:]
    (folder / "adapter").mkdir(exist_ok=True)
    for name, content in zip(FILES, good, strict=True):
        (folder / name).write_bytes(content)
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(_weights())
    (folder / "model-1.safetensors").write_bytes(_weights())
    if kind == 2:
        (folder / "model.safetensors").unlink()
    check_adapter(str(folder / "adapter"))
    found = check_model(ModelSpec(path=str(folder)))
    size = sum((folder / name).stat().st_size for name in ("model-1.safetensors", FILES[1]) if (folder / name).exists())
    assert found.parameters <= 8 * size
    assert all(tensor.bytes <= size for tensor in found.tensors.values())
    assert found.dtype.is_floating_point
    return found


def _weights() -> bytes:
    header, end = {}, 0
    for name, shape in WEIGHTS.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(end)


TARGET = Target(
    name="checkpoint",
    check=check,
    seeds=[
        b"\x00" + json.dumps(CONFIG).encode(),
        b"\x01" + _weights(),
        b"\x02" + json.dumps(INDEX).encode(),
        b"\x03" + json.dumps(ADAPTER).encode(),
        b"\x00" + json.dumps({**CONFIG, "quantization_config": {"quant_method": "bitsandbytes"}}).encode(),
        b"\x00" + json.dumps({**CONFIG, "auto_map": {"AutoModelForCausalLM": "x.Y"}, "text_config": {}}).encode(),
    ],
    words=[b"../x.safetensors", b"1e400", b"-1", b"9" * 30, b"null", b"[]", b'"attn_implementation": "a/b",', b'"F4"'],
)
