"""Reading and writing tensor by tensor: what safetensors reads back, in bounded files and bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import sources
from preceptor.errors import InputError
from preceptor.models.headers import read_header
from preceptor.models.streaming import DTYPES, Planned, TensorReader, write_model, write_tensors
from preceptor.system.files import verify_directory

TENSORS = {
    "half": torch.randn(3, 5).bfloat16(),
    "scalar": torch.tensor(2.5),
    "double": torch.randn(7).double(),
    "flags": torch.tensor([True, False, True]),
    "none": torch.empty(0, 4),
    "whole": torch.arange(6).reshape(2, 3),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "transposed": torch.randn(4, 3).T,
}


def plan(tensors: dict[str, torch.Tensor]) -> list[Planned]:
    return [Planned(name, t.dtype, tuple(t.shape), partial(t.clone)) for name, t in tensors.items()]


@pytest.mark.parametrize("shard_bytes", [1, 40, 10_000])
def test_what_is_written_is_read_back(tmp_path: Path, shard_bytes: int) -> None:
    said: list[str] = []
    write_tensors(tmp_path, plan(TENSORS), shard_bytes=shard_bytes, announce=said.append)
    files = sorted(tmp_path.glob("*.safetensors"))
    stored: dict[str, torch.Tensor] = {}
    for file in files:
        read_header(file, "here")
        stored |= load_file(file)
    assert stored.keys() == TENSORS.keys()
    assert all(torch.equal(stored[name], TENSORS[name]) for name in TENSORS)
    assert {name: t.dtype for name, t in stored.items()} == {name: t.dtype for name, t in TENSORS.items()}
    reader = TensorReader.open(tmp_path, "here")
    assert all(torch.equal(reader.read(name), TENSORS[name]) for name in TENSORS)
    assert {name: DTYPES[info.dtype] for name, info in reader.tensors.items()} == {
        name: t.dtype for name, t in TENSORS.items()
    }
    if shard_bytes == 10_000:
        assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
        assert said == []
        return
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in TENSORS.values())
    assert index["weight_map"] == {name: reader.files[name].name for name in TENSORS}
    many = len(files)
    assert [file.name for file in files] == [f"model-{n:05}-of-{many:05}.safetensors" for n in range(1, many + 1)]
    largest = max(sum(t.nbytes for t in load_file(file).values()) for file in files)
    assert largest <= max(shard_bytes, max(t.nbytes for t in TENSORS.values()))
    assert said[0].startswith(f"wrote file 1 of {len(files)} (")


def test_tensors_are_aligned_to_their_dtype(tmp_path: Path) -> None:
    write_tensors(tmp_path, plan(TENSORS))
    data = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % TENSORS[name].dtype.itemsize == 0
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # without it transformers refuses the file


def test_a_tensor_is_made_when_its_turn_comes_and_let_go_before_the_next(tmp_path: Path) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    living: list[int] = []

    def make() -> torch.Tensor:
        living.append(sum(one() is not None for one in made))
        tensor = torch.zeros(100)
        made.append(weakref.ref(tensor))
        return tensor

    write_tensors(tmp_path, [Planned(str(i), torch.float32, (100,), make) for i in range(6)], shard_bytes=800)
    assert living == [0] * 6


def test_a_model_is_whole_or_absent(tmp_path: Path) -> None:
    def fail() -> torch.Tensor:
        raise KeyboardInterrupt

    good = plan({"a": torch.ones(3)})
    write_model(tmp_path / "model", {"model_type": "x"}, good, card="# card\n")
    verify_directory(tmp_path / "model")
    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path / "model", {}, [*good, Planned("b", torch.float32, (1,), fail)])
    verify_directory(tmp_path / "model")
    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path / "other", {}, [Planned("b", torch.float32, (1,), fail)])
    assert [folder.name for folder in tmp_path.iterdir()] == ["model"]
    write_model(tmp_path / "model", {}, plan({"c": torch.ones(2)}))
    assert load_file(tmp_path / "model" / "model.safetensors").keys() == {"c"}


def test_a_tensor_that_its_file_lacks(tmp_path: Path) -> None:
    write_tensors(tmp_path, plan({"a": torch.ones(3), "b": torch.ones(3)}), shard_bytes=12)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"b":', '"c":'))
    with pytest.raises(InputError) as caught:
        TensorReader.open(tmp_path, "model 'M'")
    assert str(caught.value) == (
        "model 'M': 'c' is missing from model-00002-of-00002.safetensors, though model.safetensors.index.json says it "
        "is there; copy or download the folder again"
    )


def test_a_dtype_that_cannot_be_computed_with(tmp_path: Path) -> None:
    write_tensors(tmp_path, plan({"a": torch.ones(8, dtype=torch.uint8)}))
    file = tmp_path / "model.safetensors"
    file.write_bytes(
        file.read_bytes().replace(b'"U8","shape":[8]', b'"F4","shape":[2]').replace(b"[0,8]", b"[0,1]")[:-7]
    )
    with pytest.raises(InputError) as caught:
        TensorReader.open(tmp_path, "model 'M'")
    assert str(caught.value) == (
        "model 'M': 'a' is stored as F4, which cannot be computed with; give a checkpoint in bfloat16, float16 or "
        "float32"
    )


def test_frequencies_that_old_checkpoints_store_are_passed_over(tmp_path: Path) -> None:
    write_tensors(tmp_path, plan({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3), "b": torch.ones(3)}))
    assert TensorReader.open(tmp_path, "here").tensors.keys() == {"b"}


MEASURE = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
import sources
from preceptor.models.compose import base_tensors, plan_composition
from preceptor.models.merge import plan_merge
from preceptor.models.router_init import random_routers
from preceptor.models.streaming import write_model
from preceptor.recipe import ModelSpec

torch.set_num_threads(1)

def compose(found):
    routers = random_routers(found[0].config, 2, found[0].reader.read, 0)
    made = plan_composition(found, found[0], routers, experts_per_token=1, noise=0.01, seed=0, dtype=torch.bfloat16)
    write_model(Path({out!r}) / "composed", made.config, made.planned, shard_bytes=20_000_000)

def merge(found):
    planned = plan_merge(*found, alpha=0.5, method="slerp")
    write_model(Path({out!r}) / "merged", found[0].checkpoint.config, planned, shard_bytes=20_000_000)

def both(*names):
    specs = [ModelSpec(path=str(Path({out!r}) / name)) for name in names]
    for use in (compose, merge):
        sources.using(specs, Path({out!r}), use)

both("tiny", "tiny")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
both("a", "b")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_that_of_a_tensor_and_not_of_a_model(tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 12}
    for seed, name in enumerate("ab"):
        sources.write(tmp_path / name, seed=seed, dtype=torch.bfloat16, **sizes)
    sources.write(tmp_path / "tiny")
    tests = str(Path(sources.__file__).parent)
    script = MEASURE.format(tests=tests, out=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    written = sum(file.stat().st_size for file in (tmp_path / "composed").glob("*.safetensors"))
    assert written > 90e6
    assert int(done.stdout.split()[-1]) * 1024 < 20e6  # the largest tensor has 1 MB, and the files 20 MB each
