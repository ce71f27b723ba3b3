"""Checkpoints read and written one tensor at a time, so that models larger than memory can be put together.

A checkpoint of 15 GB is rearranged in the memory of its largest tensor: a tensor's dtype and shape are known from
the headers, so the header of an output file is written before its first weight is computed, and each weight
goes to the disk as soon as it is there. (The safetensors package writes a file from all of its tensors at once.)
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor

from preceptor.errors import InputError
from preceptor.models.checkpoint import CONFIG, WEIGHTS, WEIGHTS_INDEX
from preceptor.models.headers import TensorInfo, read_header
from preceptor.models.load import quiet_transformers
from preceptor.models.save import keep_sentencepiece
from preceptor.system.files import publish_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHARD_BYTES = 5_000_000_000
"""Largest weight file written, in bytes; a tensor that is larger has a file of its own."""
_GENERATION_CONFIG = "generation_config.json"
# Recomputed from the config by every model that has it; old checkpoints store it all the same.
_DERIVED = "rotary_emb.inv_freq"
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorReader:
    """The tensors of a checkpoint by name, wherever among its files they lie; `where` begins its messages."""

    where: str
    tensors: dict[str, TensorInfo]
    files: dict[str, Path]

    @classmethod
    def open(cls, folder: Path, where: str) -> TensorReader:
        """Finds every tensor of a folder that `check_model` has found whole; reads headers only.

        Raises:
            InputError: a tensor that the index promises is not in its file, or is of a dtype nothing here reads.
        """
        index: dict[str, str] = {}
        names = [WEIGHTS]
        if not (folder / WEIGHTS).is_file():
            index = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(index.values()))
        tensors: dict[str, TensorInfo] = {}
        files: dict[str, Path] = {}
        for file in names:
            for name, info in read_header(folder / file, where).items():
                if not name.endswith(_DERIVED):
                    tensors[name], files[name] = info, folder / file
        for name, file in index.items():
            if not name.endswith(_DERIVED) and files.get(name) != folder / file:
                raise InputError(
                    f"{where}: {name!r} is missing from {file}, though {WEIGHTS_INDEX} says it is there; "
                    "copy or download the folder again"
                )
        for name, info in tensors.items():
            if info.dtype not in DTYPES:
                raise InputError(
                    f"{where}: {name!r} is stored as {info.dtype}, which cannot be computed with; give a checkpoint in "
                    "bfloat16, float16 or float32"
                )
        return cls(where, tensors, files)

    def read(self, name: str) -> Tensor:
        """One tensor as stored; it is freed with the last reference to it."""
        # Opened anew for every tensor: pages of an open file count as memory of this process.
        with safe_open(self.files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: what its header says, and the function that computes it when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_model(
    directory: Path,
    config: dict[str, Any],
    planned: Sequence[Planned],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    generation_from: Path | None = None,
    card: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Writes a model folder that `from_pretrained` reads; `directory` appears whole or not at all.

    Peak memory is what `make` needs for one tensor. The generation settings, if any, are those of the folder
    `generation_from`. A directory that already has the name is replaced.
    """
    aside = directory.with_name(f".{directory.name}.writing")
    with emptied(aside):
        (aside / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if generation_from is not None and (generation_from / _GENERATION_CONFIG).is_file():
            shutil.copyfile(generation_from / _GENERATION_CONFIG, aside / _GENERATION_CONFIG)
        if tokenizer is not None:
            with quiet_transformers():
                tokenizer.save_pretrained(str(aside))
                keep_sentencepiece(tokenizer, aside)
        if card is not None:
            (aside / "README.md").write_text(card, encoding="utf-8")
        write_tensors(aside, planned, shard_bytes=shard_bytes, announce=announce)
        publish_directory(aside, directory)


@contextmanager
def emptied(folder: Path) -> Iterator[Path]:
    """A folder that begins empty and is gone afterwards, unless it was given another name meanwhile."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_tensors(
    folder: Path,
    planned: Sequence[Planned],
    *,
    shard_bytes: int = SHARD_BYTES,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Writes `model.safetensors`, or several files of at most `shard_bytes` and their index, tensor by tensor."""
    shards = _shards(planned, shard_bytes)
    names = [WEIGHTS]
    if len(shards) > 1:
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    for number, (name, shard) in enumerate(zip(names, shards, strict=True), start=1):
        _write_shard(folder / name, shard)
        if announce is not None and len(shards) > 1:
            announce(f"wrote file {number} of {len(shards)} ({sum(item.size for item in shard) / 1e9:.1f} GB)")
    if len(shards) > 1:
        weight_map = {item.name: name for name, shard in zip(names, shards, strict=True) for item in shard}
        index = {"metadata": {"total_size": sum(item.size for item in planned)}, "weight_map": weight_map}
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _shards(planned: Sequence[Planned], shard_bytes: int) -> list[list[Planned]]:
    """In the order given; inside a file wide dtypes come first, so that every tensor is aligned to its dtype."""
    shards: list[list[Planned]] = [[]]
    filled = 0
    for item in planned:
        if shards[-1] and filled + item.size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(item)
        filled += item.size
    return [sorted(shard, key=lambda item: -item.dtype.itemsize) for shard in shards]


def _write_shard(file: Path, shard: Sequence[Planned]) -> None:
    """One safetensors file: the header's length in 8 bytes, the header (JSON, padded to 8), the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in shard:
        offsets = [end, end + item.size]
        header[item.name] = {"dtype": _NAMES[item.dtype], "shape": list(item.shape), "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for item in shard:
            tensor = item.make()
            assert (tensor.dtype, tuple(tensor.shape)) == (item.dtype, item.shape), item.name
            stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            del tensor  # before the next one is made
