"""The settings a first recipe begins with."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from first_folder import write_tokenizer
from preceptor.data.rows import Row
from preceptor.starter.choices import batch, length, parted, rows_per_step, shares
from preceptor.starter.data import DataFacts, length_of_most
from preceptor.starter.models import ModelFacts


def data(name: str, role: str, rows: int | None) -> DataFacts:
    return DataFacts(name, f"{name}.jsonl", role, rows)


def model(parameters: int | None = None, positions: int | None = None) -> ModelFacts:
    return ModelFacts("m", config={"max_position_embeddings": positions}, parameters=parameters)


@pytest.mark.parametrize(
    ("most", "positions", "tokens"),
    [(None, None, 2048), (None, 512, 512), (None, 32768, 2048), (100, None, 128), (64, 4096, 64), (700, 512, 512)],
)
def test_length(most: int | None, positions: int | None, tokens: int) -> None:
    assert length(most, model(), model(positions=positions)).tokens == tokens


def test_length_of_most_rows(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    short, long = (Row("d", ({"role": "user", "content": "a" * size},), None) for size in (10, 300))
    some = DataFacts("d", "d.jsonl", "general", 200, sample=[short] * 198 + [long] * 2)
    assert length_of_most([some], tokenizer) == 316  # a letter is a token, and a template has 16 of its own
    assert length_of_most([some], tokenizer, share=0.9) == 26
    plain = DataFacts("d", "d.txt", "general", 1, sample=[Row("d", None, "abc")])
    assert length_of_most([plain], tokenizer) == 19
    assert length_of_most([], tokenizer) is None


@pytest.mark.parametrize(
    ("rows", "per_device", "chosen"),
    [(40, 8, 8), (2_000, 1, 16), (4_000, 1, 32), (10_000, 1, 64), (10**7, 8, 64), (None, 1, 64), (40, 16, 16)],
)
def test_rows_per_step_leaves_an_epoch_its_steps(rows: int | None, per_device: int, chosen: int) -> None:
    assert rows_per_step([data("d", "general", rows)], per_device) == chosen


@pytest.mark.parametrize(("parameters", "rows"), [(None, 1), (10_000, 8), (7_000_000_000, 1)])
def test_batch(parameters: int | None, rows: int) -> None:
    assert batch(model(parameters)) == rows


@pytest.mark.parametrize(
    ("domain", "general", "share"), [(100, 10_000, 0.1), (300, 700, 0.3), (900, 100, 0.5), (None, 100, 0.1)]
)
def test_shares_of_stage_2(domain: int | None, general: int, share: float) -> None:
    found = shares([data("g", "general", general), data("d", "domain", domain)])
    assert found == {"d": share, "g": pytest.approx(1 - share)}


@pytest.mark.parametrize("counts", [[1, 1, 1], [1, 10**6, 3], [7, None, 5], list(range(1, 13))])
def test_parts_sum_to_the_whole_and_none_is_empty(counts: list[int | None]) -> None:
    found = parted([data(f"d{i}", "general", rows) for i, rows in enumerate(counts)], 1.0)
    assert sum(round(100 * share) for share in found.values()) == 100
    assert min(found.values()) >= 0.01


@pytest.mark.parametrize(("rows", "holdout"), [(None, 500), (2, 1), (200, 20), (10**6, 500)])
def test_a_tenth_is_held_out(rows: int | None, holdout: int) -> None:
    assert data("d", "general", rows).holdout == holdout
