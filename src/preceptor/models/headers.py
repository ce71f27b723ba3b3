"""The header of a safetensors file: which tensors it holds, and whether it is whole.

The format is 8 bytes (little endian) that give the length of a JSON header, the header, and the tensors' bytes
without gaps. A file that a full disk or a broken download cut short shows here, without reading a weight.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preceptor.errors import InputError, shown

_LARGEST_HEADER = 100_000_000  # bytes; the safetensors format's own limit
_MOST_DIMENSIONS = 64  # PyTorch's limit; the product of a header's worth of numbers would take minutes
_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
}
_BITS |= {
    "C64": 64,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
}
_BITS |= {"F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file: the format's dtype name (`F32`, `BF16`, …) and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size in the file."""
        return math.ceil(math.prod(self.shape) * _BITS.get(self.dtype, 0) / 8)


def read_header(file: Path, where: str) -> dict[str, TensorInfo]:
    """The tensors a safetensors file lists, after checking that its header and its length agree.

    Raises:
        InputError: the file is cut short, longer than its header says, or no safetensors file at all.
    """
    damaged = f"{where}: {file.name} is damaged"
    mend = "copy or download the file again"
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise InputError(f"{damaged} (it has {size:,} bytes and its header does not fit in them); {mend}")
        raw = stream.read(length)
    try:
        entries = {name: entry for name, entry in json.loads(raw).items() if name != "__metadata__"}
        tensors = {
            name: TensorInfo(entry["dtype"], _counts(entry["shape"], size, _MOST_DIMENSIONS))
            for name, entry in entries.items()
        }
        spans = []
        for name, entry in entries.items():
            start, stop = _counts(entry["data_offsets"], size, 2)
            spans.append((start, stop, name))
        if not all(isinstance(tensor.dtype, str) for tensor in tensors.values()):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{damaged} (its header is not readable); {mend}") from None
    end = 0
    for start, stop, name in sorted(spans):
        bits = math.prod(tensors[name].shape) * _BITS.get(tensors[name].dtype, 0)
        if start != end or stop < start or (bits and (stop - start) * 8 != bits):
            raise InputError(f"{damaged} (tensor {shown(name)} does not lie where its header says); {mend}")
        end = stop
    if 8 + length + end != size:
        raise InputError(f"{damaged} (it should have {8 + length + end:,} bytes and has {size:,}); {mend}")
    return tensors


def _counts(values: Any, most: int, length: int) -> tuple[int, ...]:
    """At most `length` whole numbers from 0; none that a file of `most` bytes could not mean, of eight in a byte.

    Raises ValueError or TypeError.
    """
    if not isinstance(values, list) or len(values) > length:
        raise TypeError
    if not all(type(each) is int and 0 <= each <= 8 * most for each in values):
        raise ValueError
    return tuple(values)
