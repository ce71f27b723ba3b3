"""Whole evaluations of tiny models: every figure against brute force, files whole, resumed by model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preceptor.data.rows import Row
from preceptor.errors import InputError
from preceptor.evaluation import evaluate
from preceptor.evaluation.evaluate import evaluate_models
from preceptor.evaluation.predict import Settings
from preceptor.evaluation.predictions import FIELDS, read_predictions
from preceptor.evaluation.rows import EvaluationSet
from preceptor.models.save import save_model
from preceptor.recipe import ModelSpec

SETTINGS = Settings(max_length=60, max_new_tokens=5, batch_size=4)


def sets(make: Any) -> list[EvaluationSet]:
    general = [
        make.row(f"ab {i}"[: 2 + i % 3], "ab"[: 1 + i % 2], "gen", metric="exact", task=f"k{i % 2}") for i in range(6)
    ]
    written = [make.row("cd" * (1 + i), "ef gh"[: 1 + i], metric="rougeL", task="write") for i in range(4)]
    plain = [Row("gen", None, "abc 0123", {}, "t")]
    return [make.set(general + plain, "gen", "general"), make.set(make.choice_rows() + written)]


@pytest.fixture(scope="module")
def specs(make: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("ref", "expert", "dae")):
        save_model(make.model(seed + 5, torch.float32), make.tokenizer, folder / name, dtype=torch.float32)
    return {name: ModelSpec(path=str(folder / name)) for name in ("ref", "expert", "dae")}


def run(specs: Any, make: Any, folder: Path | None, log: Any = print, **options: Any) -> dict[str, Any]:
    given = {"reference": "ref", "expert": "expert", "settings": SETTINGS, "resamples": 50, **options}
    return evaluate_models(specs, sets(make), directory=folder, log=log, **given)


def test_predictions_hold_a_row_each_and_scores_follow_from_them(specs: Any, make: Any, tmp_path: Path) -> None:
    said: list[str] = []
    scores = run(specs, make, tmp_path, said.append)
    assert json.loads((tmp_path / "scores.json").read_text())["models"].keys() == specs.keys()
    rows = read_predictions(tmp_path / "predictions" / "dae.jsonl")
    assert len(rows) == 7 + 13
    assert all(list(row) == list(FIELDS) for row in rows)
    gen, shop = rows[:7], rows[7:]
    assert [row["row"] for row in shop] == list(range(13))
    assert gen[6]["metric"] is gen[6]["score"] is gen[6]["answer"] is gen[6]["expected"] is None
    for row in shop[:9]:
        assert row["answer"] == row["choices"][int(np.argmax(row["log_likelihoods"]))]
        assert row["score"] == float(row["answer"] == row["expected"])
    by_task = [np.mean([r["score"] for r in gen if r["task"] == task]) for task in ("k0", "k1")]
    assert scores["models"]["dae"]["general"]["score"] == pytest.approx(np.mean(by_task))
    pooled = sum(row["kl"] for row in gen) / sum(row["targets"] for row in gen)
    assert scores["models"]["dae"]["kl_reference"]["value"] == pytest.approx(pooled)
    for name, role in (("ref", "kl_reference"), ("expert", "kl_expert")):
        assert scores["models"][name][role]["value"] < 1e-6
        assert scores["models"]["dae"][role]["value"] > 0.01
    assert scores["models"]["ref"]["retention"] in (None, {"value": 1.0, "low": 1.0, "high": 1.0})
    assert "gen: 7 test rows (general)" in said
    assert any(line.startswith("dae (3 of 3): 20 rows in ") for line in said)
    assert any(line.startswith("note: shop: only 13 scored rows") for line in said)


def test_one_model_alone_has_scores_and_no_comparison(specs: Any, make: Any) -> None:
    scores = run({"dae": specs["dae"]}, make, None, reference=None, expert=None)
    entry = scores["models"]["dae"]
    assert entry["general"]["score"] >= 0
    assert entry["datasets"]["shop"]["perplexity"]["value"] > 1
    for key in ("kl_reference", "kl_expert", "agreement_reference", "agreement_expert", "recovery", "retention"):
        assert entry[key] is None
    assert set(entry["flips"].values()) == set(entry["over_reference"].values()) == {None}


def test_batches_change_nothing(specs: Any, make: Any) -> None:
    first, other = (
        run(specs, make, None, settings=replace(SETTINGS, batch_size=size))["models"]["dae"] for size in (1, 50)
    )
    assert first["general"] == other["general"]
    assert first["domain"] == other["domain"]
    for key in ("kl_reference", "kl_expert"):
        assert first[key]["value"] == pytest.approx(other[key]["value"], rel=1e-4)


def test_a_stopped_evaluation_goes_on_with_the_next_model(
    specs: Any, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(specs, make, tmp_path / "whole")
    real, asked = evaluate.predict, []

    def stopped(*args: Any, **options: Any) -> Any:
        asked.append(options["title"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(evaluate, "predict", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(specs, make, tmp_path / "run")
    assert [file.name for file in (tmp_path / "run" / "predictions").iterdir()] == ["ref.jsonl"]
    assert not (tmp_path / "run" / "scores.json").exists()
    said: list[str] = []
    assert run(specs, make, tmp_path / "run", said.append) == whole
    assert asked == ["ref (1 of 3)", "expert (2 of 3)", "expert (2 of 3)", "dae (3 of 3)"]
    assert "ref (1 of 3): its predictions are there, kept" in said


@pytest.mark.parametrize("spoil", ["cut", "other rows", "other teachers", "older fields"])
def test_predictions_of_something_else_are_made_anew(specs: Any, make: Any, tmp_path: Path, spoil: str) -> None:
    whole = run(specs, make, tmp_path)
    path = tmp_path / "predictions" / "ref.jsonl"
    rows = read_predictions(path)
    if spoil == "cut":
        path.write_text(path.read_text()[:-20])
    elif spoil == "other rows":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    elif spoil == "other teachers":
        path.write_text("".join(json.dumps({**row, "kl": None, "agree": None}) + "\n" for row in rows))
    else:
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "nll"}) + "\n" for row in rows))
    said: list[str] = []
    assert run(specs, make, tmp_path, said.append) == whole
    assert not any(line.startswith("ref (1 of 3): its predictions are there") for line in said)
    assert any(line.startswith("dae (3 of 3): its predictions are there") for line in said)
    assert read_predictions(path) == rows


def test_rows_that_do_not_fit_one_model_are_left_out_for_all(make: Any, tmp_path: Path) -> None:
    save_model(make.model(1, torch.float32), make.tokenizer, tmp_path / "long", dtype=torch.float32)
    short = make.model(2, torch.float32, max_position_embeddings=36)
    save_model(short, make.tokenizer, tmp_path / "short", dtype=torch.float32)
    specs = {name: ModelSpec(path=str(tmp_path / name)) for name in ("long", "short")}
    said: list[str] = []
    scores = run(specs, make, None, said.append, reference=None, expert=None)
    assert scores["settings"] == {"max_length": 36, "max_new_tokens": 5}
    assert "short: its context is 36 tokens, so all models are given rows of at most that many" in said
    shop = scores["datasets"]["shop"]
    assert shop["dropped"] == {"a choice does not fit within 36 tokens": 2}
    assert (shop["rows"], shop["cut"]) == (11, 0)
    assert "shop: 2 rows dropped for all models: 2 a choice does not fit within 36 tokens" in scores["warnings"]
    shorter = run(
        specs, make, None, said.append, reference=None, expert=None, settings=replace(SETTINGS, max_length=30)
    )
    assert shorter["datasets"]["shop"]["cut"] == 1
    assert any(line.endswith(" left out, 1 cut to 30 tokens") for line in said)
    with pytest.raises(InputError) as caught:
        run(specs, make, None, reference=None, expert=None, settings=replace(SETTINGS, max_length=9))
    assert str(caught.value) == (
        "data shop: none of its 13 test rows can be evaluated: 13 no target within 9 tokens; mend the rows, or raise "
        "max_length"
    )


def test_every_model_is_loaded_once_and_only_when_needed(
    specs: Any, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    real = evaluate.load_model
    monkeypatch.setattr(
        evaluate, "load_model", lambda spec, role: (loaded.append(Path(spec.path).name), real(spec, role=role))[1]
    )
    run(specs, make, tmp_path)
    assert sorted(loaded) == ["dae", "expert", "ref"]
    loaded.clear()
    run(specs, make, tmp_path)
    assert loaded == []
