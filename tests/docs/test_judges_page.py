"""docs/judges.md: its recipe loads, its files fit together, and its fields are those that are written."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from snippets import ROOT, snippets

from judged import (
    RANKING,
    FakeJudge,
    annotation_rows,
    answer_rows,
    as_json,
    jsonl,
    judgment_row,
    output_rows,
    prompt_rows,
    question_rows,
)
from preceptor.evaluation.alpaca_eval.benchmark import evaluate_alpaca_eval, read_alpaca_eval_files
from preceptor.evaluation.mt_bench.benchmark import evaluate_mt_bench, read_mt_bench_files
from preceptor.recipe import EvaluateStage, load_recipe

PAGE = ROOT / "docs" / "judges.md"


def results(folder: Path, monkeypatch: Any) -> dict[str, dict[str, Any]]:
    """What the page's recipe gives on small files in the places it names."""
    monkeypatch.chdir(folder)
    (recipe,) = [each.text for each in snippets("yaml") if each.place.startswith("docs/judges.md")]
    (folder / "recipe.yaml").write_text(recipe)
    stage = load_recipe(folder / "recipe.yaml").stages["scores"]
    assert isinstance(stage, EvaluateStage)
    bench, alpaca = stage.mt_bench, stage.alpaca_eval
    assert bench is not None
    assert alpaca is not None
    jsonl(folder / bench.questions, question_rows("writing", "math"))
    jsonl(folder / str(bench.prompts), prompt_rows())
    jsonl(folder / str(bench.references), answer_rows(82))
    jsonl(folder / bench.judgments[0], [judgment_row(81, 1, 7, model="gpt-3.5-turbo")])
    as_json(folder / alpaca.baseline, output_rows("b1", "b2"))
    (folder / str(alpaca.prompt)).write_text(RANKING)
    as_json(folder / alpaca.annotations["alpaca-7b"], annotation_rows(1, 2))
    answers = {"student": jsonl(folder / "a.jsonl", answer_rows(81, 82))}
    outputs = {"student": as_json(folder / "o.json", output_rows("m1", "m2", generator="student"))}
    names = ["student", "teacher"]
    judge = FakeJudge(lambda request: "[[7]]")
    ranking = FakeJudge(lambda request: "[{'model': 'model_1', 'rank': 1}]")
    return {
        "mt_bench": evaluate_mt_bench(bench, read_mt_bench_files(bench, names), answers, folder / "mt", judge=judge),
        "alpaca_eval": evaluate_alpaca_eval(
            alpaca, read_alpaca_eval_files(alpaca, names), outputs, folder / "alpaca", judge=ranking
        ),
    }


def named_fields(suite: str) -> set[str]:
    """The fields in the table under `suite`, `.x` after `models.M.y` being `models.M.x`."""
    text = PAGE.read_text(encoding="utf-8").split("## `scores.json`")[1]
    part = text.split("`alpaca_eval`; ")[0 if suite == "mt_bench" else 1]
    found: set[str] = set()
    for row in re.findall(r"^\| (`[^|]*) \|", part, re.MULTILINE):
        names = re.findall(r"`([^`]+)`", row)
        found |= {f"models.M{name}" if name.startswith(".") else name for name in names}
    return found - {"field"}


def written_fields(result: dict[str, Any]) -> set[str]:
    entry = next(iter(result["models"].values()))
    inner = {f"models.M.{key}" for key in entry}
    if "turns" in entry:
        inner = inner - {"models.M.turns", "models.M.categories"} | {f"models.M.turns.{key}" for key in entry["turns"]}
        inner |= {"models.M.categories.C"}
    return {key for key in result if key != "models"} | inner


def test_the_recipe_gives_the_fields_of_the_page(tmp_path: Path, monkeypatch: Any) -> None:
    for suite, result in results(tmp_path, monkeypatch).items():
        assert named_fields(suite) == written_fields(result)
        assert len(result["models"]) == 2
    assert (tmp_path / "mt" / "model_judgment" / "gpt-4_single.jsonl").is_file()
    assert (tmp_path / "alpaca" / "student" / "annotations.json").is_file()


def test_the_published_row_is_the_one_of_the_page(data_folder: Path) -> None:
    from preceptor.evaluation.alpaca_eval.files import read_annotations, read_outputs
    from preceptor.evaluation.alpaca_eval.scores import Annotated, summarise

    results = data_folder / "eval" / "alpaca_eval" / "results"
    rows = read_annotations(results / "alpaca-7b" / "alpaca_eval_gpt4" / "annotations.json")
    baseline = {each.instruction: each.output for each in read_outputs(results / "text_davinci_003/model_outputs.json")}
    entries, _, _ = summarise({"m": Annotated(rows, "annotations file")}, [each.instruction for each in rows])
    entry = entries["m"]
    other = sum(each.output_1 != baseline[each.instruction] for each in rows)
    lengths = sum(map(len, baseline.values())) / len(baseline)
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert (
        f"{entry['win_rate']:.4f} with standard error {entry['standard_error']:.4f}, {entry['wins']} wins, "
        f"{entry['losses']} losses, {entry['ties']} ties"
    ) in text
    assert (
        f"of the 805 answers in the annotations behind the published row of alpaca-7b, {other} differ from that" in text
    )
    assert f"they are {entry['baseline_mean_length']:.0f} characters long on average, not {lengths:.0f}" in text


def test_the_costs_are_those_of_the_annotations(data_folder: Path) -> None:
    results = data_folder / "eval" / "alpaca_eval" / "results"
    said = []
    for name in ("alpaca-7b/alpaca_eval_gpt4", "text_davinci_003/weighted_alpaca_eval_gpt4_turbo"):
        rows = json.loads((results / name / "annotations.json").read_text(encoding="utf-8"))
        prices = [row["price_per_example"] for row in rows if row["price_per_example"] is not None]
        said += [f"{sum(prices):.2f}", str(len(prices))]
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert (
        "GPT-4 took {} dollars for the {} preferences of alpaca-7b's published row, and GPT-4 Turbo {} for {} with "
        "log-probabilities"
    ).format(*said) in text
