"""A store on disk: rows come back as they were written, and what is not whole is not read."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stores
import toys
from preceptor.errors import InputError
from preceptor.stored_signals import SampledTokens, Stored, TopTokens, WholeDistributions
from preceptor.system.files import is_store
from preceptor.teachers import ModelTeacher
from preceptor.teachers.store import Store, expect
from preceptor.teachers.store_files import ShardWriter, clean, rows_of, write_manifest
from preceptor.teachers.store_modes import SampleMode
from preceptor.teachers.store_report import info, render_info, verify
from preceptor.teachers.store_rows import row_key, target_digest, uniforms
from preceptor.teachers.store_writer import StoredRow, store_batch

V = toys.VOCABULARY
LENGTHS, ANSWERS = [9, 7, 5, 12, 8, 11, 6, 10], [4, 3, 0, 5, 2, 6, 3, 1]


@pytest.fixture(scope="module")
def teacher() -> torch.nn.Module:
    return toys.llama(1, sharpness=2)


def rows() -> list[Any]:
    return stores.encoded(toys.rows(5, LENGTHS, ANSWERS))


def arrays(stored: Stored) -> dict[str, Any]:
    return {name: value.tolist() for name, value in vars(stored).items() if isinstance(value, torch.Tensor)}


def content(folder: Path) -> dict[bytes, dict[str, Any]]:
    """By key, what each row of a store says."""
    store = Store(folder)
    return {key: arrays(store.read([place])) for key, place in stores.keys(store).items()}


# --- what comes back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", stores.MODES)
def test_what_is_read_is_what_the_teacher_says(name: str, tmp_path: Path, teacher: torch.nn.Module) -> None:
    folder = stores.write(tmp_path / "s", teacher, rows(), **stores.MODES[name])
    store = Store(folder)
    assert len(store) == 7, "the row without a target is not stored"
    for row in rows():
        if not row.target_count:
            continue
        named = StoredRow.of(row)
        place = store.find(*named.name)
        assert place is not None
        got = store.read([place])
        with torch.no_grad():
            ids = torch.from_numpy(row.input_ids.astype(np.int64))
            log_p = teacher(ids[None]).logits[0].log_softmax(-1)[named.positions]
        assert len(got) == len(named.positions)
        if isinstance(got, WholeDistributions):
            torch.testing.assert_close(got.log_prob_NV.float(), log_p, atol=5e-3, rtol=0)
        elif isinstance(got, TopTokens):
            top = log_p.topk(7)
            assert got.token_NK.tolist() == top.indices.tolist()
            torch.testing.assert_close(got.log_prob_NK, top.values, atol=5e-3, rtol=0)
            tail = log_p.scatter(1, top.indices, -torch.inf).exp().sum(-1)
            torch.testing.assert_close(got.log_tail_N.exp(), tail, atol=1e-5, rtol=1e-4)
        else:
            entropy = -(log_p.exp() * log_p).sum(-1)
            torch.testing.assert_close(got.entropy_N, entropy, atol=2e-3, rtol=0)
            shares = torch.zeros(len(got), V).index_put_((got.index_U, got.token_U), got.share_U)
            torch.testing.assert_close(shares.sum(-1), torch.ones(len(got)))
            # Stratified: no token's count is off by more than the two strata its interval ends in.
            assert float((shares - log_p.exp()).abs().max()) <= 2 / 50


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_entropy_and_draws_are_at_the_stores_temperature(
    temperature: float, tmp_path: Path, teacher: torch.nn.Module
) -> None:
    store = Store(stores.write(tmp_path / "s", teacher, rows(), temperature=temperature))
    for row in rows():
        named = StoredRow.of(row)
        if (place := store.find(*named.name)) is None:
            continue
        got = store.read([place])
        assert isinstance(got, SampledTokens)
        with torch.no_grad():
            ids = torch.from_numpy(row.input_ids.astype(np.int64))
            log_p = (teacher(ids[None]).logits[0] / temperature).log_softmax(-1)[named.positions]
        torch.testing.assert_close(got.entropy_N, -(log_p.exp() * log_p).sum(-1), atol=2e-3, rtol=0)
        shares = torch.zeros(len(got), V).index_put_((got.index_U, got.token_U), got.share_U)
        assert float((shares - log_p.exp()).abs().max()) <= 2 / 50


@pytest.mark.parametrize("name", stores.MODES)
def test_parts_of_what_is_read(name: str, tmp_path: Path, teacher: torch.nn.Module) -> None:
    folder = stores.write(tmp_path / "s", teacher, rows(), **stores.MODES[name])
    store = Store(folder)
    whole = store.read(store.places(range(7)))
    one_by_one = [store.read([place]) for place in store.places(range(7))]
    start = 0
    for each in one_by_one:
        assert arrays(whole.of(start, start + len(each))) == arrays(each)
        start += len(each)
    assert start == len(whole) == sum(ANSWERS)
    assert len(whole.of(3, 3)) == 0


def test_draws_depend_on_seed_row_and_position_alone() -> None:
    key, other = row_key(np.arange(5)), row_key(np.arange(6))
    whole = uniforms(1, key, np.arange(2, 40), 50)
    assert np.array_equal(uniforms(1, key, np.array([5, 9, 30]), 50), whole[[3, 7, 28]])
    for changed in (uniforms(2, key, np.arange(2, 40), 50), uniforms(1, other, np.arange(2, 40), 50)):
        assert not np.isin(changed, whole).any()
    assert len(np.unique(whole)) == whole.size
    assert bool((np.floor(whole * 50) == np.arange(50)).all()), "one in each fiftieth"


@pytest.mark.parametrize("name", stores.MODES)
def test_batches_shards_and_order_do_not_matter(name: str, tmp_path: Path, teacher: torch.nn.Module) -> None:
    """Exactly, for a float64 teacher, whose probabilities do not feel the batch they were computed in."""
    exact = toys.llama(1, torch.float64, sharpness=2)
    how = stores.MODES[name]
    one = content(stores.write(tmp_path / "one", exact, rows(), batch=7, **how))
    many = content(stores.write(tmp_path / "many", exact, rows()[::-1], batch=2, shard_bytes=1, **how))
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == 4
    assert one.keys() == many.keys()
    for key, said in one.items():
        if name == "sample":
            assert many[key] == said
        for field, values in said.items():
            np.testing.assert_allclose(many[key][field], values, atol=1e-3)


def test_more_shards_than_are_held_open(
    tmp_path: Path, teacher: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = content(stores.write(tmp_path / "s", teacher, rows(), batch=1, shard_bytes=1))
    monkeypatch.setattr("preceptor.teachers.store._OPEN", 2)
    assert content(tmp_path / "s") == whole
    assert len(whole) == 7


def test_one_row_learned_in_two_ways_is_two_rows(tmp_path: Path, teacher: torch.nn.Module) -> None:
    row = rows()[0]
    whole = np.arange(len(row)) > 0
    both = [row, type(row)("rows", row.input_ids, whole, origin="rows.jsonl:1")]
    store = Store(stores.write(tmp_path / "s", teacher, both))
    for each, count in zip(both, (4, 8)):
        named = StoredRow.of(each)
        place = store.find(*named.name)
        assert place is not None
        assert len(store.read([place])) == count
    assert store.find(StoredRow.of(row).key, target_digest(np.array([3]))) is None
    assert store.knows(StoredRow.of(row).key)
    assert not store.knows(row_key(np.arange(3)))


def test_fifty_draws_of_a_language_models_sharpness_take_under_forty_bytes() -> None:
    """17 distinct tokens of 32,000 are 40 bytes; a position of one token takes 10."""
    tokens = np.zeros((1000, 50), dtype=np.int32)
    entropy = np.zeros(1000, dtype=np.float16)
    mode = SampleMode(32_000, 1.0, 50)
    assert len(mode.pack([tokens, entropy])) <= 10.01 * 1000
    tokens[:, 34:] = np.arange(1, 17) * 1999
    assert len(mode.pack([tokens, entropy])) <= 40.01 * 1000
    low, high = mode.bytes_per_target()
    assert low == pytest.approx(10.0)
    tokens[:] = np.arange(50) * 600
    assert len(mode.pack([tokens, entropy])) == pytest.approx(1000 * high)


# --- what is not whole ----------------------------------------------------------------------------------------------


def finished(folder: Path, teacher: torch.nn.Module) -> Path:
    return stores.write(folder, teacher, rows(), batch=2, shard_bytes=1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip, r"000-00001.safetensors is not what was written \(its SHA-256 differs\)"),
        (cut, r"000-00001.safetensors is cut short \(it has [\d,]+ bytes and manifest.json says [\d,]+\)"),
        (grow, "000-00001.safetensors is too long"),
        (Path.unlink, "000-00001.safetensors is missing, though manifest.json lists it"),
    ],
)
def test_a_damaged_shard_is_named(damage: Any, words: str, tmp_path: Path, teacher: torch.nn.Module) -> None:
    folder = finished(tmp_path / "s", teacher)
    assert verify(folder)["whole"]
    damage(folder / "000-00001.safetensors")
    for read in (Store, verify):
        with pytest.raises(InputError, match=words):
            read(folder)


def test_a_byte_anywhere_is_noticed(tmp_path: Path, teacher: torch.nn.Module) -> None:
    folder = finished(tmp_path / "s", teacher)
    path = folder / "000-00000.safetensors"
    whole = path.read_bytes()
    for at in range(0, len(whole), 37):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(InputError, match="SHA-256 differs"):
            Store(folder)


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_another_version_another_format_and_no_manifest(tmp_path: Path, teacher: torch.nn.Module) -> None:
    folder = finished(tmp_path / "s", teacher)
    assert is_store(folder)
    with pytest.raises(InputError, match="is in format version 2 and this preceptor reads version 1"):
        Store(edited(folder, version=2))
    with pytest.raises(InputError, match="is not that of a teacher store"):
        Store(edited(folder, format="model"))
    assert not is_store(folder)
    with pytest.raises(InputError, match=r"000-00000.safetensors is of another store than manifest.json describes"):
        Store(edited(folder, format="preceptor teacher store", version=1, temperature=2.0))
    (folder / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="is not that of a teacher store"):
        Store(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="so it is not finished"):
        Store(folder)
    with pytest.raises(InputError, match="there is no such folder"):
        Store(tmp_path / "nowhere")


@pytest.mark.parametrize("value", [None, 5, -1, 2.5, True, "x", [], ["x"], [5], {}, {"sha256": 5}, {"x": {}}])
def test_any_manifest_gives_a_sentence(value: Any, tmp_path: Path, teacher: torch.nn.Module) -> None:
    """Each field in turn holding something else: read as it was meant, or refused; never a traceback."""
    folder = finished(tmp_path / "s", teacher)
    path = folder / "manifest.json"
    whole = json.loads(path.read_text())
    for text in (json.dumps(value).encode(), b"[" * 100_000, b"\xff", b"", b'{"format": NaN}'):
        path.write_bytes(text)
        with pytest.raises(InputError, match="is not that of a teacher store"):
            info(folder)
    for field in whole:
        path.write_text(json.dumps({**whole, field: value}))
        with contextlib.suppress(InputError):
            render_info(info(folder))
            verify(folder)
    first = next(iter(whole["shards"]))
    for shards in ({first: value}, {f"../{first}": whole["shards"][first]}):
        path.write_text(json.dumps({**whole, "shards": shards}))
        with pytest.raises(InputError, match=r"its manifest.json is damaged \(of shard '.*' it says "):
            verify(folder)


def test_verify_compares_what_shards_hold_with_the_manifest(tmp_path: Path, teacher: torch.nn.Module) -> None:
    folder = finished(tmp_path / "s", teacher)
    manifest = json.loads((folder / "manifest.json").read_text())
    name = "000-00001.safetensors"
    shards = {**manifest["shards"], name: {**manifest["shards"][name], "rows": 9}}
    edited(folder, shards=shards, rows=manifest["rows"] + 9 - manifest["shards"][name]["rows"])
    with pytest.raises(InputError, match=rf"{name} holds 2 rows with \d target positions, and manifest.json says 9 "):
        verify(folder)
    edited(folder, shards=manifest["shards"], rows=manifest["rows"], seed=5)
    with pytest.raises(InputError, match=r"000-00000.safetensors is of another store than manifest.json describes"):
        verify(folder)


@pytest.mark.parametrize(
    ("field", "wanted", "words"),
    [
        (
            "teacher",
            {"model": "other", "sha256": "dd"},
            "its teacher is 'toy' .SHA-256 aa.*is 'other' .SHA-256 dd",
        ),
        (
            "tokenizer",
            {"tokens": 9, "sha256": "dd"},
            "its tokenizer is one of 61 tokens .*one of 9 tokens",
        ),
        ("template", {"text": "x", "sha256": "dd"}, "its chat template is '{{ messages }}' "),
        ("temperature", 2.0, "its temperature is 1.0, and this one is 2.0"),
        ("mode", "full", "its mode is 'sample', and this one is 'full'"),
        ("draws", 10, "its number of draws is 50, and this one is 10"),
        ("seed", 1, "its seed of the draws is 0, and this one is 1"),
    ],
)
def test_the_differing_field_is_named(
    field: str, wanted: Any, words: str, tmp_path: Path, teacher: torch.nn.Module
) -> None:
    store = Store(finished(tmp_path / "s", teacher))
    expect(store.folder, store.manifest, stores.IDENTITY, "this one is")
    with pytest.raises(InputError, match=words):
        expect(store.folder, store.manifest, {**stores.IDENTITY, field: wanted}, "this one is")


# --- stopping and going on ------------------------------------------------------------------------------------------


def test_a_stopped_writer_goes_on_after_the_last_whole_shard(tmp_path: Path, teacher: torch.nn.Module) -> None:
    whole = content(finished(tmp_path / "whole", teacher))
    folder = tmp_path / "parts"
    named = [StoredRow.of(row) for row in rows() if row.target_count]
    live, mode = ModelTeacher(teacher), SampleMode(V, 1.0, 50)

    def write(batches: list[list[StoredRow]], rank: int) -> dict[str, Any]:
        writer = ShardWriter(folder, stores.IDENTITY, rank=rank, shard_bytes=1)
        for batch in batches:
            store_batch(live, batch, mode, writer, seed=0, pad_token_id=3)
        writer.flush()
        return writer.written

    batches = [named[i : i + 2] for i in range(0, len(named), 2)]
    first = write(batches[:2], rank=1)
    # What a kill leaves: a shard under its temporary name, one cut short, one of another job, a manifest.
    (folder / ".000-00000.safetensors.x1").write_bytes(b"half")
    ShardWriter(folder, {**stores.IDENTITY, "seed": 1}, rank=7)
    other = stores.write(tmp_path / "other", teacher, rows(), seed=1) / "000-00000.safetensors"
    other.rename(folder / "007-00000.safetensors")
    (folder / "001-00009.safetensors").write_bytes((folder / "001-00000.safetensors").read_bytes()[:-1])
    said: list[str] = []
    kept = clean(folder, stores.IDENTITY, said.append)
    assert kept == first
    assert said == [
        "001-00009.safetensors is not what was written (its SHA-256 differs); its rows are written again",
        "1 shards of another job (another teacher, data or setting) are removed",
    ]
    assert {path.name for path in folder.iterdir()} == {*first, "000.journal"}
    done = rows_of(folder, kept)
    assert done == {row.name for batch in batches[:2] for row in batch}
    second = write(batches[2:], rank=1)
    assert not set(first) & set(second)
    assert clean(folder, stores.IDENTITY) == kept | second
    write_manifest(folder, stores.IDENTITY, kept | second)
    assert not list(folder.glob("*.journal"))
    assert content(folder) == whole
    # Killed before its stage was recorded: the manifest is what knows the shards.
    assert clean(folder, stores.IDENTITY) == kept | second
    assert clean(folder, stores.IDENTITY) == kept | second


@pytest.mark.parametrize("finished_before", [False, True])
def test_damage_while_it_was_stopped_is_written_again(
    tmp_path: Path, teacher: torch.nn.Module, finished_before: bool
) -> None:
    """A flipped byte would otherwise be given a checksum of its own."""
    folder = finished(tmp_path / "s", teacher)
    manifest = json.loads((folder / "manifest.json").read_text())
    if not finished_before:
        hashes = {name: facts["sha256"] for name, facts in manifest["shards"].items()}
        (folder / "000.journal").write_text(json.dumps(hashes))
        (folder / "manifest.json").unlink()
    (folder / "notes").mkdir()
    flip(folder / "000-00001.safetensors")
    said: list[str] = []
    kept = clean(folder, stores.IDENTITY, said.append)
    assert sorted(kept) == ["000-00000.safetensors", "000-00002.safetensors", "000-00003.safetensors"]
    assert said == ["000-00001.safetensors is not what was written (its SHA-256 differs); its rows are written again"]
    assert not (folder / "000-00001.safetensors").exists()


def test_a_teacher_that_moved_is_the_same_job(tmp_path: Path, teacher: torch.nn.Module) -> None:
    folder = finished(tmp_path / "s", teacher)
    moved = {**stores.IDENTITY, "teacher": {**stores.IDENTITY["teacher"], "model": "elsewhere"}}
    said: list[str] = []
    assert len(clean(folder, moved, said.append)) == 4
    assert not said
    other = {**stores.IDENTITY, "teacher": {**stores.IDENTITY["teacher"], "sha256": "dd" * 32}}
    assert not clean(folder, other, said.append)
    assert said == ["4 shards of another job (another teacher, data or setting) are removed"]


def test_info_counts_everything(tmp_path: Path, teacher: torch.nn.Module) -> None:
    folder = finished(tmp_path / "s", teacher)
    found = info(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert (found["rows"], found["target_positions"], found["shards"], found["bytes"]) == (7, sum(ANSWERS), 4, size)
    assert found["bytes_per_target"] == pytest.approx(size / sum(ANSWERS), abs=0.01)
    assert " in 4 shards, " in render_info(found)
    assert " in 1 shard, " in render_info({**found, "shards": 1})


def test_logits_that_are_not_finite_are_not_stored(tmp_path: Path) -> None:
    broken = toys.llama(1)
    with torch.no_grad():
        broken.lm_head.weight[3] = torch.nan
    with pytest.raises(RuntimeError, match="its logits are not finite"):
        stores.write(tmp_path / "s", broken, rows())


@pytest.mark.parametrize("name", stores.MODES)
def test_a_distribution_of_no_token_is_not_stored(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tokens excluded: no logit is too large, and no probability is a number."""
    monkeypatch.setattr("preceptor.signals.Head.logits", lambda self, hidden: torch.full((len(hidden), V), -torch.inf))
    with pytest.raises(RuntimeError, match="its predictions are no numbers"):
        stores.write(tmp_path / "s", toys.llama(1), rows(), **stores.MODES[name])


def test_sampled_tokens_of_one_row_are_where_they_belong() -> None:
    mode = SampleMode(V, 1.0, 4)
    packed = mode.pack([np.array([[1, 1, 2, 9], [5, 5, 5, 5]]), np.zeros(2, np.float16)])
    stored = mode.unpack([(np.frombuffer(packed, np.uint8), 2)])
    assert isinstance(stored, SampledTokens)
    assert stored.index_U.tolist() == [0, 0, 0, 1]
    assert stored.token_U.tolist() == [1, 2, 9, 5]
    assert stored.share_U.tolist() == [0.5, 0.25, 0.25, 1.0]
