"""MT-Bench means against an independent statement in pandas, and intervals against draws made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from judged import jsonl, judgment_row, question_rows
from preceptor.evaluation.mt_bench.files import read_judgments, read_questions
from preceptor.evaluation.mt_bench.scores import Judged, summarise

CATEGORIES = ["writing"] * 5 + ["math"] * 4 + ["stem"] * 6


def files(folder: Path, models: int = 3, seed: int = 3) -> tuple[Path, Path]:
    """Questions, some of one turn only, and judgments of several models with failures and gaps."""
    rng = np.random.default_rng(seed)
    rows = question_rows(*CATEGORIES)
    for place in (2, 7):
        rows[place]["turns"] = rows[place]["turns"][:1]
    judgments = [
        judgment_row(row["question_id"], turn, float(rng.choice([-1, 1, 2, 5, 7.5, 10])), model=f"m{model}")
        for model in range(models)
        for row in rows
        for turn in range(1, len(row["turns"]) + 1)
        if rng.random() > 0.1
    ]
    rng.shuffle(judgments)  # type: ignore[arg-type]
    return jsonl(folder / "question.jsonl", rows), jsonl(folder / "j.jsonl", judgments)


def score(question_path: Path, judgment_path: Path, **options: Any) -> tuple[Any, Any, Any]:
    models: dict[str, list[Any]] = {}
    for each in read_judgments(judgment_path):
        models.setdefault(each.model, []).append(each)
    ordered = {name: Judged(models[name], "judgments file") for name in sorted(models)}
    return summarise(ordered, read_questions(question_path), **options)


@pytest.mark.parametrize("seed", range(4))
def test_means_are_those_of_the_official_script(tmp_path: Path, seed: int) -> None:
    question_path, judgment_path = files(tmp_path, seed=seed)
    entries, _, _ = score(question_path, judgment_path)
    table = pd.read_json(judgment_path, lines=True).query("score != -1")
    category = pd.read_json(question_path, lines=True).set_index("question_id").category
    table["category"] = table.question_id.map(category)
    for name, entry in entries.items():
        mine = table[table.model == name]
        assert entry["score"]["score"] == pytest.approx(mine.score.mean(), rel=1e-12)
        assert entry["rows"] == len(mine)
        for turn in (1, 2):
            assert entry["turns"][str(turn)]["score"] == pytest.approx(mine[mine.turn == turn].score.mean(), rel=1e-12)
        for each, figures in entry["categories"].items():
            rows = mine[mine.category == each].score
            assert figures["rows"] == len(rows)
            assert figures["score"] == pytest.approx(rows.mean(), rel=1e-12)


def test_failures_and_gaps_are_counted_and_in_no_mean(tmp_path: Path) -> None:
    questions = jsonl(tmp_path / "q.jsonl", question_rows("writing", "math"))
    judgments = jsonl(tmp_path / "j.jsonl", [judgment_row(81, 1, 4), judgment_row(81, 2, -1), judgment_row(82, 1, 9)])
    entries, differences, warnings = score(questions, judgments)
    entry = entries["m"]
    assert (entry["rows"], entry["failed"], entry["missing"]) == (2, 1, 1)
    assert entry["score"]["score"] == 6.5
    assert entry["turns"]["2"] is None
    assert entry["categories"]["writing"]["score"] == 4
    assert differences == []
    assert warnings == [
        "2 questions are fewer than the 80 of MT-Bench, so that the scores cannot be set beside published ones",
        "m: no grade could be read from 1 of 4 judgments; they are left out of the means",
        "m: 1 of 4 judgments are missing; the means are over the rest",
    ]


def test_a_model_without_a_grade_has_no_score(tmp_path: Path) -> None:
    questions = jsonl(tmp_path / "q.jsonl", question_rows("writing"))
    rows = [judgment_row(81, turn, -1) for turn in (1, 2)] + [judgment_row(81, 1, 5, model="n")]
    entries, differences, _ = score(questions, jsonl(tmp_path / "j.jsonl", rows))
    assert entries["m"]["score"] is None
    assert entries["m"]["categories"]["writing"] == {"score": None, "low": None, "high": None, "rows": 0}
    assert entries["m"]["failed"] == 2
    assert differences == []
    json.dumps(entries, allow_nan=False)


def test_intervals_draw_questions_within_categories_and_keep_turns_together(tmp_path: Path) -> None:
    question_path, judgment_path = files(tmp_path, models=1)
    entries, _, _ = score(question_path, judgment_path, seed=5, resamples=4000)
    table = pd.read_json(judgment_path, lines=True).query("score != -1")
    questions = pd.read_json(question_path, lines=True)
    groups = [
        [list(table[table.question_id == q].score) for q in rows.question_id]
        for _, rows in questions.groupby("category")
    ]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        total = count = 0.0
        for rows in ([row for row in group if row] for group in groups):  # of n questions n − 1, n/(n − 1) times each
            for i in rng.integers(0, len(rows), len(rows) - 1):
                total += sum(rows[i]) * len(rows) / (len(rows) - 1)
                count += len(rows[i]) * len(rows) / (len(rows) - 1)
        drawn.append(total / count)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert entries["m0"]["score"]["low"] == pytest.approx(low, abs=0.08)
    assert entries["m0"]["score"]["high"] == pytest.approx(high, abs=0.08)
    # Turns drawn apart would give a narrower interval where they agree.
    same = jsonl(tmp_path / "same.jsonl", [judgment_row(q, t, q % 10 + 1) for q in range(81, 96) for t in (1, 2)])
    plain = jsonl(tmp_path / "plain.jsonl", question_rows(*["writing"] * 15))
    once = jsonl(tmp_path / "once.jsonl", [judgment_row(q, 1, q % 10 + 1) for q in range(81, 96)])
    both = score(plain, same)[0]["m"]["score"]
    first = score(plain, once)[0]["m"]["score"]
    assert (both["low"], both["high"]) == pytest.approx((first["low"], first["high"]))


def test_differences_are_paired_over_common_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base = {(q, t): float(rng.integers(1, 9)) for q in range(81, 96) for t in (1, 2)}
    rows = [judgment_row(q, t, s, model="a") for (q, t), s in base.items()]
    rows += [judgment_row(q, t, s + 1, model="b") for (q, t), s in base.items() if (q, t) != (81, 1)]
    questions = jsonl(tmp_path / "q.jsonl", question_rows(*CATEGORIES))
    entries, differences, warnings = score(questions, jsonl(tmp_path / "j.jsonl", rows), reference="a")
    assert differences == [{"model": "b", "than": "a", "value": 1.0, "low": 1.0, "high": 1.0, "rows": 29}]
    assert entries["a"]["score"]["high"] > entries["b"]["score"]["low"]  # what an unpaired look would say
    assert not any("distinguishable" in each for each in warnings)
    _, differences, warnings = score(
        questions,
        jsonl(
            tmp_path / "k.jsonl",
            rows
            + [
                judgment_row(q, t, s + (1 if rng.random() > 0.5 else -1) if 1 < s < 10 else s, model="c")
                for (q, t), s in base.items()
            ],
        ),
        reference="a",
    )
    assert [each["model"] for each in differences] == ["b", "c"]
    assert sum("c and a are not distinguishable: their scores differ by" in each for each in warnings) == 1


def test_a_score_off_the_scale_counts_and_is_warned_about(tmp_path: Path) -> None:
    questions = jsonl(tmp_path / "q.jsonl", question_rows("writing"))
    rows = [judgment_row(81, 1, 12), judgment_row(81, 2, 4), judgment_row(99, 1, 4)]
    entries, _, warnings = score(questions, jsonl(tmp_path / "j.jsonl", rows))
    assert entries["m"]["score"]["score"] == 8
    assert entries["m"]["missing"] == 0
    assert warnings[1:] == [
        "m: the judge left the scale of 1 to 10 in 1 of 2 judgments; these grades count as they stand, as in the "
        "official script",
        "m: judgments of questions that are not asked here are left out (1)",
    ]


def test_few_questions(tmp_path: Path) -> None:
    """A category of one question has no interval of its own, and several of them still give the mean one."""
    questions = jsonl(tmp_path / "q.jsonl", question_rows(*[f"c{number}" for number in range(8)]))
    rows = [judgment_row(81 + q, t, 3 + q % 4, model="a") for q in range(8) for t in (1, 2)]
    rows += [judgment_row(81 + q, 1, 10, model="b") for q in range(5)] + [judgment_row(88, 1, 6, model="c")]
    rows += [judgment_row(81 + q, 1, 9, model="c") for q in range(5)]
    entries, (five, six), warnings = score(questions, jsonl(tmp_path / "j.jsonl", rows))
    assert entries["a"]["categories"]["c0"] == {"score": 3.0, "low": None, "high": None, "rows": 2}
    assert entries["a"]["score"]["low"] < 4.5 < entries["a"]["score"]["high"]
    assert entries["b"]["score"] == {"score": 10.0, "low": None, "high": None}
    assert (five["value"], five["low"], five["rows"]) == (pytest.approx(10 - 21 / 5), None, 5)
    assert (six["value"], six["rows"]) == (pytest.approx((6 + 5 + 4 + 3 + 6 + 0) / 6), 6)
    assert 0 < six["low"] < six["value"] < six["high"]
    assert entries["a"]["judge"] == "gpt-4"
    one = jsonl(tmp_path / "one.jsonl", [judgment_row(81, 1, s, model=m) for m, s in (("a", 3), ("b", 9))])
    _, (found,), warnings = score(questions, one)
    assert found == {"model": "b", "than": "a", "value": 6.0, "low": None, "high": None, "rows": 1}
    assert warnings[-1] == (
        "b and a are not distinguishable: their scores differ by +6.00 over 1 common rows, too few for an interval"
    )
