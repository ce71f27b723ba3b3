"""Filters, overlap, holdouts, and the count of what is lost."""

from __future__ import annotations

import hashlib
import json
import random

import pytest

from preceptor.data.chat import DEFAULT_TEMPLATE
from preceptor.data.prepare import prepare_datasets
from preceptor.data.split import split_rows
from preceptor.errors import InputError
from preceptor.recipe import DatasetSpec
from preceptor.recipe.data import OverlapSpec


@pytest.fixture
def jsonl(write):
    def make(name, *pairs, **extra):
        lines = [json.dumps({"prompt": p, "completion": c, **extra}) for p, c in pairs]
        return write(name, "\n".join(lines))

    return make


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer("characters", DEFAULT_TEMPLATE)


def prepare(specs, tokenizer, *, names=None, said=None, **options):
    options = {"seed": 43, "max_length": 128} | options
    announce = (said if said is not None else []).append
    return prepare_datasets(list(names or specs), specs, tokenizer, announce=announce, **options)


def prompts(rows):
    return [row.prompt for row in rows]


def test_holdout_takes_the_smallest_hashes(jsonl, tokenizer):
    pairs = [(f"question {i}", "yes") for i in range(50)]
    spec = DatasetSpec(path=jsonl("d.jsonl", *pairs), holdout=7)
    said = []
    prepared = prepare({"shop": spec}, tokenizer, said=said)["shop"]
    ranked = sorted((p for p, _ in pairs), key=lambda p: hashlib.sha256(f"43\n{p}".encode()).hexdigest())
    assert set(prompts(prepared.holdout_rows)) == set(ranked[:7])
    assert [p for p, _ in pairs if p not in ranked[:7]] == prompts(prepared.rows)
    assert (len(prepared.train), len(prepared.holdout)) == (43, 7)
    assert said == ["shop: 50 rows, JSONL, `prompt/completion`", "shop: 7 rows held out, 43 left to train on"]
    assert prepared.announcements == said
    assert [row.origin for row in prepared.rows] == [row.origin for row in prepared.train]


def test_holdout_does_not_depend_on_order_and_does_on_seed(jsonl, tokenizer):
    pairs = [(f"question {i}", "yes") for i in range(50)]
    shuffled = random.Random(0).sample(pairs, 50)
    held = []
    for name, rows, seed in (("a", pairs, 1), ("b", shuffled, 1), ("c", pairs, 2)):
        spec = DatasetSpec(path=jsonl(f"{name}.jsonl", *rows), holdout=9)
        held.append(set(prompts(split_rows({"shop": spec}, seed=seed, announce=str)["shop"].holdout)))
    assert held[0] == held[1] != held[2]


def test_rows_of_one_prompt_stay_together(jsonl):
    pairs = [(f"question  {i % 10}" if i % 2 else f"question {i % 10} ", str(i)) for i in range(50)]
    spec = DatasetSpec(path=jsonl("d.jsonl", *pairs), holdout=7)
    split = split_rows({"shop": spec}, seed=43, announce=str)["shop"]
    assert len(split.holdout) == 10
    assert not set(prompts(split.train)) & set(prompts(split.holdout))
    assert len(split.train) + len(split.holdout) == 50


def test_where(write):
    lines = [{"text": f"t{i}", "task": "ab"[i % 2], "ok": i < 4, "n": i} for i in range(8)]
    path = write("d.jsonl", "\n".join(map(json.dumps, lines)))

    def texts(where):
        split = split_rows({"x": DatasetSpec(path=path, where=where)}, seed=0, announce=str)
        return [row.text for row in split["x"].train]

    assert texts({"task": "a"}) == ["t0", "t2", "t4", "t6"]
    assert texts({"task": "a", "ok": True}) == ["t0", "t2"]
    assert texts({"n": [1, 5]}) == ["t1", "t5"]
    assert texts({"n": 1}) == ["t1"], "true is not 1"
    path = write("d.csv", "text,n,ok\na,1,True\nb,2,False\n")
    assert texts({"n": 2}) == ["b"]
    assert texts({"ok": True}) == ["a"]


def test_overlap_is_counted_and_mended(jsonl, tokenizer):
    shop = jsonl("shop.jsonl", ("one", "a"), ("two", "b"), ("three", "c"))
    general = jsonl("general.jsonl", (" two ", "x"), ("two", "y"), ("four", "z"), ("five", "z"))
    specs = {"shop": DatasetSpec(path=shop), "general": DatasetSpec(path=general)}
    with pytest.raises(InputError, match=r"2 rows of general and 1 row of shop have the same prompts"):
        prepare(specs, tokenizer)
    said = []
    mended = prepare(specs, tokenizer, overlap=OverlapSpec(drop_from="general"), said=said)
    assert prompts(mended["general"].rows) == ["four", "five"]
    assert prompts(mended["shop"].rows) == ["one", "two", "three"]
    assert "general: 2 rows removed, their prompts are in other data too" in said
    # A stage that reads one of them only sees the same rows.
    alone = prepare(specs, tokenizer, names=["general"], overlap=OverlapSpec(drop_from="general"))
    assert list(alone) == ["general"]
    assert prompts(alone["general"].rows) == ["four", "five"]
    # A dataset made from another's prompts shares them of course.
    assert len(prepare(specs, tokenizer, generated=["general"])["general"].rows) == 4


def test_train_and_test_overlap(jsonl, tokenizer):
    train, test = jsonl("train.jsonl", ("one", "a"), ("two", "b")), jsonl("test.jsonl", ("two", "c"), ("six", "d"))
    spec = DatasetSpec(path=train, test=test)
    with pytest.raises(InputError, match="1 row of shop and 1 row of the test rows of shop have the same prompts"):
        prepare({"shop": spec}, tokenizer)
    said = []
    prepared = prepare({"shop": spec}, tokenizer, overlap=OverlapSpec(drop_from="shop"), said=said)["shop"]
    assert prompts(prepared.rows) == ["one"]
    assert prompts(prepared.test_rows) == ["two", "six"]
    assert said[1] == "shop: test, 2 rows, JSONL, `prompt/completion`"


def test_several_datasets_may_lose_rows(jsonl, tokenizer):
    """Of two that may, the first named does; and test rows never."""
    specs = {
        "a": DatasetSpec(path=jsonl("a.jsonl", ("one", "x"), ("two", "x"), ("three", "x"))),
        "b": DatasetSpec(path=jsonl("b.jsonl", ("two", "x"), ("four", "x"), ("five", "x"))),
        "c": DatasetSpec(path=jsonl("c.jsonl", ("six", "x")), test=jsonl("t.jsonl", ("three", "x"), ("four", "x"))),
    }
    both = OverlapSpec(drop_from=["b", "a"])
    prepared = prepare(specs, tokenizer, overlap=both)
    assert {name: prompts(p.rows) for name, p in prepared.items()} == {"a": ["one", "two"], "b": ["five"], "c": ["six"]}
    assert prompts(prepared["c"].test_rows) == ["three", "four"]
    with pytest.raises(InputError, match="1 row of a and 1 row of the test rows of c have the same prompts"):
        prepare(specs, tokenizer, overlap=OverlapSpec(drop_from="b"))
    same = {"a": specs["a"], "b": specs["a"]}
    with pytest.raises(
        InputError, match=r"data b: all its 3 rows have prompts of other data, so that .* leaves nothing"
    ):
        prepare(same, tokenizer, overlap=OverlapSpec(drop_from="b"))


def test_dropped_rows_are_counted_by_reason(jsonl, tokenizer):
    pairs = [
        ("one", "a"),
        ("two", " "),
        ("three", " "),
        ("q" * 90, "b"),
        ("five", "c" * 300),
        *[(f"{i}", "y") for i in range(9)],
    ]
    spec = DatasetSpec(path=jsonl("d.jsonl", *pairs), max_length=100)
    said = []
    prepared = prepare({"shop": spec}, tokenizer, said=said)["shop"]
    assert prepared.dropped == {"the answer is empty": 2, "no target within 100 tokens": 1}
    assert said[1:] == [
        "shop: 2 rows dropped: the answer is empty",
        "shop: 1 row dropped: no target within 100 tokens",
        "shop: 1 row cut to 100 tokens",
    ]
    assert len(prepared.train) == len(prepared.rows) == 11


def test_losing_more_than_half_is_an_error_unless_allowed(jsonl, tokenizer):
    pairs = [("one", "a"), ("two", " "), ("three", " ")]
    path = jsonl("d.jsonl", *pairs)
    with pytest.raises(InputError, match="2 of 3 rows would be dropped, more than half: 2 the answer is empty"):
        prepare({"shop": DatasetSpec(path=path)}, tokenizer)
    assert len(prepare({"shop": DatasetSpec(path=path, allow_drops=True)}, tokenizer)["shop"].train) == 1
    half = DatasetSpec(path=jsonl("half.jsonl", ("one", "a"), ("two", " ")))
    assert len(prepare({"shop": half}, tokenizer)["shop"].train) == 1


def test_plain_text_rows(write, tokenizer):
    prepared = prepare({"books": DatasetSpec(path=write("b.txt", "one two\n\nthree"), holdout=1)}, tokenizer)["books"]
    assert len(prepared.train) == len(prepared.holdout) == 1
    assert prepared.train[0].is_target.tolist() == [False] + [True] * (len(prepared.train[0]) - 1)


def test_real_data_overlaps_where_the_readme_says(data_folder):
    """All 1,800 review rows of the shop are rows of the general data, too."""
    specs = {
        "general": DatasetSpec(path=str(data_folder / "general/t0_train_50k.jsonl.gz")),
        "shop": DatasetSpec(path=str(data_folder / "ecommerce/ecom_train.jsonl.gz")),
    }
    with pytest.raises(InputError, match=r"1,800 rows of general and 1,800 rows of shop have the same prompts"):
        split_rows(specs, seed=43, announce=str)
    said = []
    parts = split_rows(specs, seed=43, announce=said.append, overlap=OverlapSpec(drop_from="general"))
    assert parts["general"].overlapping == 1800
    assert len(parts["shop"].train) == 39179
    assert not {r.prompt_key for r in parts["general"].train} & {r.prompt_key for r in parts["shop"].train}
