"""Stores of strangers who know how to make checksums agree: each is refused by name, and nothing outside is read."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from fuzz.target_store import IDENTITY, MANIFEST, MODES, ROWS, SHARD, VOCABULARY, _store
from preceptor.errors import InputError
from preceptor.models.headers import read_header
from preceptor.system.files import is_store, sha256_file
from preceptor.teachers.store import Store
from preceptor.teachers.store_files import ShardWriter, job_of, read_manifest
from preceptor.teachers.store_rows import row_key, target_digest
from preceptor.teachers.stored import StoredTeacher

Tensors = dict[str, Any]


def store(folder: Path, mode: str = "sample") -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in zip((MANIFEST, SHARD), _store(mode), strict=True):
        (folder / name).write_bytes(content)
    return folder


def agree(folder: Path, **facts: Any) -> Path:
    """Makes the manifest say what the shard is now."""
    manifest = json.loads((folder / MANIFEST).read_text())
    size = (folder / SHARD).stat().st_size
    manifest["shards"][SHARD] |= {"bytes": size, "sha256": sha256_file(folder / SHARD), **facts}
    manifest |= {key: manifest["shards"][SHARD][key] for key in ("rows", "target_positions", "bytes")}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def rewritten(folder: Path, change: Callable[[Tensors], Any], **facts: Any) -> Path:
    """The shard with other tensors under a header of the same job, and a manifest that agrees."""
    tensors = {name: tensor.copy() for name, tensor in load_file(folder / SHARD).items()}
    change(tensors)
    job = job_of(json.loads((folder / MANIFEST).read_text()))
    (folder / SHARD).write_bytes(save(tensors, metadata={"job": job}))
    return agree(folder, **facts)


def everything(folder: Path) -> Any:
    found = Store(folder)
    return found.read(found.places(range(len(found))))


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        everything(folder)
    return str(caught.value).replace(str(folder), "STORE")


# --- the manifest ---------------------------------------------------------------------------------------------------

MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "a temperature of a thousand digits": ({"temperature": 10**1000}, "temperature is 1000"),
    "a temperature that is none": ({"temperature": True}, "temperature is True"),
    "a vocabulary beyond int32": ({"vocabulary": 2**31}, "vocabulary is 2147483648"),
    "a negative vocabulary": ({"vocabulary": -5}, "vocabulary is -5"),
    "a billion draws": ({"draws": 10**9}, f"of shard {SHARD} it says 3 rows and 10 target positions in"),
    "more draws than can be": ({"draws": 10**18}, "draws is 1000000000000000000"),
    "no draws": ({"draws": -1}, "draws is -1"),
    "whole distributions in so few bytes": (
        {"mode": "full", "vocabulary": 1000},
        f"of shard {SHARD} it says 3 rows and 10 target",
    ),
    "shards that are none": ({"shards": [SHARD]}, f"shards is ['{SHARD}']"),
    "counts that are not the shards'": ({"rows": 4}, "rows is 4, and the shards have 3"),
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_lies(tmp_path: Path, case: str) -> None:
    changes, said = MANIFESTS[case]
    folder = store(tmp_path / "store")
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))
    assert refusal(folder).startswith(f"store 'STORE': its manifest.json is damaged ({said}")


@pytest.mark.parametrize(
    "name",
    [
        "../000-00000.safetensors",
        "/etc/passwd",
        "0-0.safetensors/../x",
        "a.bin",
        "0-" + "9" * 300 + ".safetensors",
        "9" * 300 + "-0.safetensors",
    ],
)
def test_a_shard_of_another_name(tmp_path: Path, name: str) -> None:
    folder = store(tmp_path / "store")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["shards"] = {name: manifest["shards"][SHARD]}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert "its manifest.json is damaged (of shard " in refusal(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": ' * 5000, '{"format": NaN}', "1" * 5000, "\ud800", ""])
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    folder = store(tmp_path / "store")
    (folder / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert "its manifest.json is not that of a teacher store" in refusal(folder)
    assert not is_store(folder)


def test_a_manifest_too_large(tmp_path: Path) -> None:
    folder = store(tmp_path / "store")
    with (folder / MANIFEST).open("ab") as stream:
        stream.truncate(1 << 40)  # a hole
    assert "has 1,099,511,627,776 bytes, more than one of a store has" in refusal(folder)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [MANIFEST, SHARD])
def test_a_link_out_of_the_store(tmp_path: Path, name: str) -> None:
    folder = store(tmp_path / "store")
    outside = store(tmp_path / "outside") / name
    (folder / name).unlink()
    (folder / name).symlink_to(outside)
    assert refusal(folder) == (
        f"store 'STORE': {name} is a link that leads out of the folder; copy the file itself there"
    )


@pytest.mark.parametrize("inside", [".", "store"])
def test_a_snapshot_of_the_hubs_cache_is_read(tmp_path: Path, inside: str) -> None:
    """Its files are links to `blobs`, which is beside it; what links elsewhere is refused there too."""
    cache = tmp_path / "datasets--org--store"
    folder = cache / "snapshots" / "0123abc" / inside
    folder.parent.mkdir(parents=True)
    store(folder)
    (cache / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(cache / "blobs" / str(number))
        file.symlink_to(os.path.relpath(cache / "blobs" / str(number), folder))
    assert len(everything(folder)) == 10
    (folder / SHARD).unlink()
    (folder / SHARD).symlink_to(store(tmp_path / "outside") / SHARD)
    assert refusal(folder).endswith("is a link that leads out of the folder; copy the file itself there")


def test_a_link_within_the_store_is_read(tmp_path: Path) -> None:
    folder = store(tmp_path / "store")
    (folder / SHARD).rename(folder / "kept")
    (folder / SHARD).symlink_to("kept")
    assert len(everything(folder)) == 10


def test_a_file_with_nearly_a_shards_name_is_no_shard(tmp_path: Path) -> None:
    folder = store(tmp_path / "store")
    (folder / "000-00000 (copy).safetensors").write_bytes(b"")
    assert ShardWriter(folder, {**IDENTITY, "mode": "sample"})._number == 1


# --- shards ---------------------------------------------------------------------------------------------------------


def overlap(tensors: Tensors) -> None:
    tensors["offsets"][1] += 3


def backwards(tensors: Tensors) -> None:
    tensors["offsets"][1] = -(2**62)


def outside(tensors: Tensors) -> None:
    tensors["offsets"][-1] = 2**40


def many_targets(tensors: Tensors) -> None:
    tensors["targets"][0] = 2**31 - 1


def fewer_keys(tensors: Tensors) -> None:
    tensors["keys"] = tensors["keys"][:2]


def negative(tensors: Tensors) -> None:
    tensors["targets"][0] = -4


def token_beyond(tensors: Tensors) -> None:
    tensors["data"][-3:] = 255  # the last row's ids: 15 of 11


def strange_entropy(tensors: Tensors) -> None:
    tensors["data"][:2] = (0, 0x7E)  # NaN in float16


NO_SHARD = f"store 'STORE': {SHARD} is no shard of a store; copy the store again, or write it anew"
SHARDS: dict[str, tuple[Callable[[Tensors], None], dict[str, Any], str]] = {
    "rows that run backwards": (backwards, {}, NO_SHARD),
    "a row outside the file": (outside, {}, NO_SHARD),
    "fewer keys than rows": (fewer_keys, {}, NO_SHARD),
    "a negative number of targets": (negative, {"target_positions": 2}, NO_SHARD),
    "rows that overlap": (overlap, {}, "store 'STORE': row "),
    "more targets than bytes": (
        many_targets,
        {},
        "store 'STORE': 000-00000.safetensors holds 3 rows with 2,147,483,653",
    ),
    "a token that there is not": (token_beyond, {}, f"store 'STORE': row 3 of {SHARD} is damaged (it names token "),
    "NaN": (strange_entropy, {}, f"store 'STORE': a row of those in {SHARD} is damaged (an entropy is nan)"),
}


@pytest.mark.parametrize("case", SHARDS)
def test_a_shard_that_lies(tmp_path: Path, case: str) -> None:
    change, facts, said = SHARDS[case]
    assert refusal(rewritten(store(tmp_path / "store"), change, **facts)).startswith(said)


@pytest.mark.parametrize("mode", MODES)
def test_more_targets_than_bytes_with_a_manifest_that_agrees(tmp_path: Path, mode: str) -> None:
    folder = rewritten(store(tmp_path / "store", mode), many_targets, target_positions=2**31 - 1 + 6)
    assert f"of shard {SHARD} it says 3 rows and 2,147,483,653 target positions in" in refusal(folder)


@pytest.mark.parametrize(
    ("mode", "value"),
    [("full", np.inf), ("full", -np.inf), ("full", -np.nan), ("full", 3.0), ("topk", np.nan), ("topk", 1.0)],
)
def test_a_probability_that_is_none(tmp_path: Path, mode: str, value: float) -> None:
    def change(tensors: Tensors) -> None:
        at = 16 if mode == "topk" else 0  # behind the tails of the first row's 4 positions
        tensors["data"][at : at + 2] = np.array([value], "<f2").view(np.uint8)

    assert "is damaged (a log-probability is " in refusal(rewritten(store(tmp_path / "store", mode), change))


def test_a_row_of_another_number_of_targets_than_its_positions(tmp_path: Path) -> None:
    def swap(tensors: Tensors) -> None:
        tensors["keys"][[0, 1]] = tensors["keys"][[1, 0]]
        tensors["digests"][[0, 1]] = tensors["digests"][[1, 0]]

    teacher = StoredTeacher(rewritten(store(tmp_path / "store"), swap))
    with pytest.raises(InputError, match=r"has 4 targets, and the store .* holds 5 of it, so it is damaged"):
        teacher._find("a row", ROWS[0], np.arange(4))
    assert teacher._find("a row", ROWS[2], np.arange(1)) == (0, 2)


def test_a_row_that_is_there_twice_is_read_once(tmp_path: Path) -> None:
    def twice(tensors: Tensors) -> None:
        tensors["keys"][1], tensors["digests"][1] = tensors["keys"][0], tensors["digests"][0]

    found = Store(rewritten(store(tmp_path / "store"), twice))
    assert found.find(row_key(ROWS[0]), target_digest(np.arange(4))) == (0, 0)


@pytest.mark.parametrize(
    "header", [b"[" * 50_000, b'{"a": ' * 50_000, b'{"a": {"dtype": "F32", "shape": [1e999]}}' + b" " * 500]
)
def test_a_header_that_is_none(tmp_path: Path, header: bytes) -> None:
    folder = store(tmp_path / "store")
    (folder / SHARD).write_bytes(struct.pack("<Q", len(header)) + header)
    assert f"store 'STORE': {SHARD} is damaged (its header is not readable)" in refusal(agree(folder))


@pytest.mark.parametrize("shape", ["[1.0]", "[true]", '["1"]', "[-1, -1]", "1", "[1" + ", 1" * 64 + "]", "[99999]"])
def test_a_shape_that_is_none(tmp_path: Path, shape: str) -> None:
    header = f'{{"a": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 4]}}}}'.encode()
    file = tmp_path / "x.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(InputError, match=r"here: x.safetensors is damaged \(its header is not readable\)"):
        read_header(file, "here")


def test_the_good_store_is_good(tmp_path: Path) -> None:
    for mode in MODES:
        assert len(everything(store(tmp_path / mode, mode))) == 10
    assert read_manifest(tmp_path / "full")["vocabulary"] == VOCABULARY
