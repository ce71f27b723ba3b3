"""The win rate against the published boards, from the annotations they were made of."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from judged import annotation_rows, as_json
from preceptor.evaluation.alpaca_eval.files import Annotation, read_annotations, read_outputs
from preceptor.evaluation.alpaca_eval.scores import Annotated, summarise, win

BOARDS = {
    "alpaca_eval_gpt4": "data_AlpacaEval/alpaca_eval_gpt4_leaderboard.csv",
    "weighted_alpaca_eval_gpt4_turbo": "data_AlpacaEval_2/weighted_alpaca_eval_gpt4_turbo_leaderboard.csv",
}


def entry(annotations: list[Annotation], **options: Any) -> dict[str, Any]:
    asked = [each.instruction for each in annotations]
    entries, _, _ = summarise({"m": Annotated(annotations, "annotations file")}, asked, **options)
    found: dict[str, Any] = entries["m"]
    return found


def board(folder: Path, annotator: str) -> dict[str, dict[str, str]]:
    path = folder / "eval" / "alpaca_eval" / "src" / "alpaca_eval" / "leaderboards" / BOARDS[annotator]
    with path.open(newline="") as stream:
        return {row[""]: row for row in csv.DictReader(stream)}


def agrees(found: dict[str, Any], published: dict[str, str]) -> None:
    """To the last printed digit, but for the rounding of the last bit of a float."""
    for key in ("win_rate", "standard_error", "discrete_win_rate"):
        if published[key]:  # some rows were written before there was a discrete one
            assert found[key] == pytest.approx(float(published[key]), rel=1e-12, abs=1e-12)
            assert f"{found[key]:.4f}" == f"{float(published[key]):.4f}"
    for ours, theirs in (("wins", "n_wins"), ("losses", "n_wins_base"), ("ties", "n_draws"), ("rows", "n_total")):
        assert found[ours] == int(published[theirs])
    assert int(found["mean_length"]) == int(published["avg_length"])


def test_published_rows_are_reproduced(data_folder: Path) -> None:
    """Every row of a board for which there are annotations: alpaca-7b on the first."""
    compared = []
    for annotator in BOARDS:
        rows = board(data_folder, annotator)
        for path in sorted(data_folder.glob(f"eval/alpaca_eval/results/*/{annotator}/annotations.json")):
            name = path.parts[-3]
            if name in rows:
                agrees(entry(read_annotations(path)), rows[name])
                compared.append((annotator, name))
    assert ("alpaca_eval_gpt4", "alpaca-7b") in compared


def test_alpaca_7b(data_folder: Path) -> None:
    path = data_folder / "eval/alpaca_eval/results/alpaca-7b/alpaca_eval_gpt4/annotations.json"
    found = entry(read_annotations(path))
    assert f"{found['win_rate']:.15g}" == "26.4596273291925"
    assert f"{found['standard_error']:.12f}" == "1.535711469748"
    assert found["low"] < found["win_rate"] < found["high"]
    # 805 rows: the bootstrap's standard error is that of the formula.
    assert (found["high"] - found["low"]) / (2 * 1.96) == pytest.approx(found["standard_error"], rel=0.05)


@pytest.mark.parametrize(
    ("annotator", "name"),
    [("alpaca_eval_gpt4", "text_davinci_003"), ("weighted_alpaca_eval_gpt4_turbo", "gpt4_1106_preview")],
)
def test_a_baseline_against_itself_is_the_published_row(data_folder: Path, annotator: str, name: str) -> None:
    outputs = read_outputs(data_folder / "eval/alpaca_eval/results" / name / "model_outputs.json")
    rows = [
        Annotation(each.instruction, each.output, name, each.output, name, annotator, 1.5, each.dataset)
        for each in outputs
    ]
    agrees(entry(rows), board(data_folder, annotator)[name])


def test_a_weighted_preference_is_a_mean_of_probabilities(data_folder: Path) -> None:
    """No board here has this model; its row follows from the definition, written out again."""
    folder = data_folder / "eval/alpaca_eval/results/text_davinci_003/weighted_alpaca_eval_gpt4_turbo"
    with (folder / "annotations.json").open() as stream:
        preferences = np.array([each["preference"] for each in json.load(stream)])
    found = entry(read_annotations(folder / "annotations.json"))
    assert found["win_rate"] == pytest.approx(100 * (preferences - 1).sum() / 805, rel=1e-12)
    variance = ((preferences - preferences.mean()) ** 2).sum() / 804
    assert found["standard_error"] == pytest.approx(100 * (variance / 805) ** 0.5, rel=1e-12)
    assert (found["wins"], found["losses"], found["ties"]) == (14, 787, 4)
    assert found["discrete_win_rate"] == pytest.approx(100 * (14 + 2) / 805)


def read(folder: Path, *preferences: float | None) -> list[Annotation]:
    return read_annotations(as_json(folder / f"{len(list(folder.iterdir()))}.json", annotation_rows(*preferences)))


@pytest.mark.parametrize(("preference", "counts"), [(1, 0), (2, 1), (0, 0.5), (1.5, 0.5), (1.25, 0.25)])
def test_what_a_preference_counts(preference: float, counts: float) -> None:
    assert win(preference) == counts


def test_unreadable_preferences_are_in_no_mean(tmp_path: Path) -> None:
    annotations = read(tmp_path, 2, None, 1, 0, 1.5, float("nan"))
    asked = [f"do {number}" for number in range(1, 9)]
    entries, _, warnings = summarise({"m": Annotated(annotations, "annotations file")}, asked)
    found = entries["m"]
    assert found["win_rate"] == 50
    assert (found["wins"], found["losses"], found["ties"], found["rows"]) == (1, 1, 2, 4)
    assert (found["failed"], found["missing"]) == (2, 2)
    assert found["standard_error"] == pytest.approx(100 * (0.5 / 3) ** 0.5 / 2)
    assert warnings == [
        "8 instructions are fewer than the 805 of the published boards, so that the win rates cannot be set beside "
        "those there",
        "m: 2 of 8 preferences could not be read from the judge's answers and are left out of the win rate",
        "m: 2 of 8 instructions have no annotation; the win rate is over the others",
    ]


def test_without_a_preference_there_is_no_win_rate(tmp_path: Path) -> None:
    found = entry(read(tmp_path, None, None))
    assert found["win_rate"] is None
    assert found["standard_error"] is None
    json.dumps(found, allow_nan=False)
    assert entry(read(tmp_path, 2))["standard_error"] is None


def test_differences_are_paired_over_common_instructions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one = [float(each) for each in rng.uniform(1, 2, 60)]
    two = [2.0 if i < 12 else each for i, each in enumerate(one)]
    two[20] = None  # type: ignore[call-overload]
    asked = [f"do {number}" for number in range(1, 61)]
    models = {"a": Annotated(read(tmp_path, *one), "ours"), "b": Annotated(read(tmp_path, *two), "ours")}
    _, differences, warnings = summarise(models, asked, reference="a", resamples=2000)
    gain = np.array([y - x for x, y in zip(one, two, strict=True) if y is not None])
    (found,) = differences
    assert (found["model"], found["than"], found["rows"]) == ("b", "a", 59)
    assert found["value"] == pytest.approx(100 * gain.mean())
    spread = 196 * gain.std(ddof=1) / 59**0.5
    assert (found["high"] - found["low"]) / 2 == pytest.approx(spread, rel=0.15)
    assert not any("distinguishable" in each for each in warnings)
    turned = {name: Annotated(each.annotations[::-1], "ours") for name, each in models.items()}
    assert summarise(turned, asked, reference="a", resamples=2000)[1] == differences
    _, (same,), warnings = summarise({"a": models["a"], "c": models["a"]}, asked, reference="unknown")
    assert (same["model"], same["than"], same["value"]) == ("c", "a", 0)
    assert warnings[-1] == (
        "c and a are not distinguishable: their win rates differ by +0.00 points over 60 common instructions, 95 % "
        "interval +0.00 to +0.00"
    )


def test_longer_answers_and_changed_verdicts_are_warned_about(tmp_path: Path) -> None:
    rows = [{**row, "output_2": "long answer" * (3 if i else 1)} for i, row in enumerate(annotation_rows(1, 2))]
    annotations = read_annotations(as_json(tmp_path / "a.json", rows))
    _, _, warnings = summarise({"m": Annotated(annotations, "ours", changed=1, twice=2)}, ["do 1", "do 2"])
    assert warnings[1:] == [
        "m: its answers are 11.0 times as long as the baseline's (22 characters on average against 2), and judges "
        "prefer longer answers; see the length-controlled win rate before calling it better",
        "m: the verdict changed with the order of the two answers on 1 of 2 instructions",
    ]


def test_few_rows_that_agree_are_not_distinguishable_and_the_standard_error_stays(tmp_path: Path) -> None:
    asked = [f"do {number}" for number in range(1, 6)]
    models = {"a": Annotated(read(tmp_path, *[1] * 5), "ours"), "b": Annotated(read(tmp_path, *[2] * 5), "ours")}
    entries, (found,), warnings = summarise(models, asked)
    assert (entries["b"]["win_rate"], entries["b"]["low"], entries["b"]["high"]) == (100, None, None)
    assert entries["b"]["standard_error"] == 0  # s/√n, as the package has it
    assert found == {"model": "b", "than": "a", "value": 100, "low": None, "high": None, "rows": 5}
    assert warnings[-1] == (
        "b and a are not distinguishable: their win rates differ by +100.00 points over 5 common instructions, too few "
        "for an interval"
    )


def test_preferences_of_two_annotators_are_not_compared(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    models = {name: Annotated(read(tmp_path, *rng.integers(1, 3, 30).astype(float)), "ours") for name in "ab"}
    other = [dataclasses.replace(each, annotator="another") for each in models["a"].annotations]
    models["c"] = Annotated(other, "annotations file")
    entries, differences, _ = summarise(models, [f"do {number}" for number in range(1, 31)])
    assert [each["judge"] for each in entries.values()] == ["gpt4", "gpt4", "another"]
    assert [(each["model"], each["than"]) for each in differences] == [("b", "a")]
