"""Whose answer the judge sees first, how its verdict is turned back, and what is written of it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from judged import RANKING, TOKENS, FakeJudge, annotation_rows, as_json, output_rows, reply
from preceptor.errors import InputError
from preceptor.evaluation.alpaca_eval.annotating import model_first
from preceptor.evaluation.alpaca_eval.benchmark import evaluate_alpaca_eval, read_alpaca_eval_files
from preceptor.evaluation.alpaca_eval.files import read_annotations, read_outputs, write_annotations, write_outputs
from preceptor.evaluation.endpoint import Completion, Reply
from preceptor.recipe.suites import AlpacaEvalSpec, EndpointSpec, PriceSpec

PRICE = PriceSpec(input=1000.0, output=2000.0)


def spec(
    folder: Path, *baseline: str, price: PriceSpec | None = None, judge: bool = True, **more: Any
) -> AlpacaEvalSpec:
    prompt = folder / "alpaca_eval.txt"
    prompt.write_text(TOKENS if more.get("preference") == "logprobs" else RANKING)
    return AlpacaEvalSpec(
        baseline=str(as_json(folder / "base.json", output_rows(*baseline))),
        prompt=str(prompt),
        judge=EndpointSpec(endpoint="http://127.0.0.1:1/v1", model="org/judge", price=price) if judge else None,
        **more,
    )


def run(folder: Path, given: AlpacaEvalSpec, judge: FakeJudge | None, *outputs: str, **options: Any) -> dict[str, Any]:
    files = read_alpaca_eval_files(given, ["m"])
    answered = {"m": as_json(folder / "m.json", output_rows(*outputs, generator="m"))} if outputs else {}
    return evaluate_alpaca_eval(given, files, answered, folder / "out", judge=judge, **options)


def shown(request: Completion) -> tuple[str, str, str]:
    """Instruction, first and second answer as the judge sees them."""
    found = re.fullmatch(r"(do \d+) (\S+) (\S+) .*", request.messages[-1]["content"])
    assert found is not None
    return found[1], found[2], found[3]


def prefers(wanted: str) -> Any:
    """A judge without a bias: the answer that holds `wanted` wins."""

    def answer(request: Completion) -> str:
        one = 1 if wanted in shown(request)[1] else 2
        return f"[{{'model': 'model_1', 'rank': {one}}}, {{'model': 'model_2', 'rank': {3 - one}}}]"

    return answer


FIRST = "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "out" / "m" / "annotations.json").read_text())
    return found


def test_the_verdict_is_the_models_whichever_order_the_judge_saw(tmp_path: Path) -> None:
    number = 40
    given = spec(tmp_path, *[f"base{i}" for i in range(number)])
    judge = FakeJudge(prefers("model"))
    found = run(tmp_path, given, judge, *[f"model{i}" for i in range(number)], seed=3)
    first = [shown(each)[1].startswith("model") for each in judge.asked]
    assert 10 < sum(first) < 30
    assert found["models"]["m"]["win_rate"] == 100
    assert {row["preference"] for row in rows_of(tmp_path)} == {2.0}
    assert {(row["generator_1"], row["generator_2"]) for row in rows_of(tmp_path)} == {("base", "m")}
    assert all(row["output_1"].startswith("base") for row in rows_of(tmp_path))
    assert (
        run(tmp_path, given, FakeJudge(prefers("base")), *[f"model{i}" for i in range(number)])["models"]["m"][
            "win_rate"
        ]
        == 0
    )


def test_the_order_is_that_of_the_seed(tmp_path: Path) -> None:
    given = spec(tmp_path, *[f"base{i}" for i in range(20)])
    for seed in (0, 7):
        judge = FakeJudge(prefers("model"))
        run(tmp_path, given, judge, *[f"model{i}" for i in range(20)], seed=seed)
        first = {instruction: one.startswith("model") for instruction, one, _ in map(shown, judge.asked)}
        assert first == {f"do {i}": model_first(seed, f"do {i}") for i in range(1, 21)}


def test_the_order_is_a_fair_coin_of_seed_and_instruction() -> None:
    drawn = [[model_first(seed, f"do {i}") for i in range(2000)] for seed in (0, 1)]
    assert drawn[0] == [model_first(0, f"do {i}") for i in range(2000)]
    for each in drawn:
        assert 900 < sum(each) < 1100
    assert 900 < sum(a != b for a, b in zip(*drawn, strict=True)) < 1100
    model_first(0, "half \ud83d a pair")


def test_a_judge_that_prefers_the_first_answer_is_found_out_in_both_orders(tmp_path: Path) -> None:
    given = spec(tmp_path, "b1", "b2", "same", order="both")
    judge = FakeJudge(lambda request: FIRST)
    found = run(tmp_path, given, judge, "m1", "m2", "same")
    assert sorted(shown(each) for each in judge.asked) == [
        ("do 1", "b1", "m1"),
        ("do 1", "m1", "b1"),
        ("do 2", "b2", "m2"),
        ("do 2", "m2", "b2"),
    ]
    entry = found["models"]["m"]
    assert (entry["win_rate"], entry["ties"], entry["order_changed"], entry["both_orders"]) == (50, 3, 2, 2)
    assert [row["preference"] for row in rows_of(tmp_path)] == [1.5, 1.5, 1.5]
    assert [each["model_first"] for each in rows_of(tmp_path)[0]["raw_completion"]] == [False, True]
    assert "the verdict changed with the order of the two answers on 2 of 2 instructions" in found["warnings"][1]
    fair = run(tmp_path, given, FakeJudge(prefers("m2")), "m1", "m2", "same")["models"]["m"]
    assert (fair["wins"], fair["losses"], fair["ties"], fair["order_changed"]) == (1, 0, 2, 1)


def test_in_both_orders_one_reply_that_cannot_be_read_takes_the_row_out(tmp_path: Path) -> None:
    given = spec(tmp_path, "b1", "b2", order="both")
    judge = FakeJudge(lambda request: "?" if shown(request)[1] == "b1" else prefers("m")(request))
    entry = run(tmp_path, given, judge, "m1", "m2")["models"]["m"]
    assert (entry["failed"], entry["rows"], entry["win_rate"], entry["both_orders"]) == (1, 1, 100, 1)


def test_equal_answers_are_a_tie_and_cost_nothing(tmp_path: Path) -> None:
    judge = FakeJudge(prefers("m"))
    found = run(tmp_path, spec(tmp_path, "same", "b"), judge, "same", "m")
    assert len(judge.asked) == 1
    assert rows_of(tmp_path)[0]["preference"] == 1.5
    assert rows_of(tmp_path)[0]["raw_completion"] is None
    assert found["models"]["m"]["ties"] == 1
    none = FakeJudge(prefers("m"))
    assert run(tmp_path, spec(tmp_path, "same"), none, "same")["models"]["m"]["win_rate"] == 50
    assert none.asked == []


def test_replies_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    given = spec(tmp_path, "b1", "b2", price=PRICE)
    judge = FakeJudge(lambda request: "I cannot say." if shown(request)[0] == "do 1" else prefers("m")(request))
    lines: list[str] = []
    found = run(tmp_path, given, judge, "m1", "m2", log=lines.append)
    entry = found["models"]["m"]
    assert (entry["failed"], entry["rows"], entry["win_rate"]) == (1, 1, 100)
    one, two = rows_of(tmp_path)
    assert one["preference"] is None
    assert one["raw_completion"]["text"] == "I cannot say."
    assert two["price_per_example"] == pytest.approx((10 * 1000 + 5 * 2000) / 1e6)
    assert list(two) == [
        "instruction",
        "output_1",
        "generator_1",
        "dataset",
        "output_2",
        "generator_2",
        "annotator",
        "preference",
        "price_per_example",
        "time_per_example",
        "raw_completion",
    ]
    assert two["annotator"] == "alpaca_eval_org/judge"
    assert "m: 2 preferences asked for, 1 of 2 rows without one, 0 ties of equal answers" in lines
    assert any(line.startswith("m ") and "100.00" in line and "to" not in line for line in lines)  # of a single row


def test_what_the_judge_is_asked(tmp_path: Path) -> None:
    judge = FakeJudge(prefers("m"))
    run(tmp_path, spec(tmp_path, "b", judge_max_tokens=77), judge, "m")
    (request,) = judge.asked
    assert [each["role"] for each in request.messages] == ["system", "user"]
    assert request.messages[0]["content"] == "You rank."
    assert (request.temperature, request.max_tokens, request.top_logprobs) == (0.0, 77, None)
    judge = FakeJudge(lambda request: reply("m", ({"m": -0.1, "M": -2.0},)))
    run(tmp_path, spec(tmp_path, "b", preference="logprobs"), judge, "m")
    (request,) = judge.asked
    assert (request.temperature, request.max_tokens, request.top_logprobs) == (1.0, 1, 5)


def test_log_probabilities_weigh_a_preference_in_either_order(tmp_path: Path) -> None:
    def answer(request: Completion) -> Reply:
        first = shown(request)[1].startswith("model")  # the model's answer has probability 0.9 wherever it stands
        return reply(
            "m" if first else "M", ({"m": -0.10536, "M": -2.30259} if first else {"M": -0.10536, "m": -2.30259},)
        )

    given = spec(tmp_path, *[f"base{i}" for i in range(20)], preference="logprobs")
    found = run(tmp_path, given, FakeJudge(answer), *[f"model{i}" for i in range(20)])
    assert found["models"]["m"]["win_rate"] == pytest.approx(90)
    assert found["models"]["m"]["discrete_win_rate"] == 100
    assert found["preference"] == "logprobs"
    assert len(found["warnings"]) == 1


def test_in_both_orders_a_weaker_preference_is_no_change_of_the_verdict(tmp_path: Path) -> None:
    def answer(request: Completion) -> Reply:
        instruction, first, _ = shown(request)
        share = {"do 1": (0.4, 0.1), "do 2": (0.8, 0.3)}[instruction][first.startswith("model")]  # of the first answer
        return reply("m", ({"m": math.log(share), "M": math.log(1 - share)},))

    given = spec(tmp_path, "base1", "base2", preference="logprobs", order="both")
    entry = run(tmp_path, given, FakeJudge(answer), "model1", "model2")["models"]["m"]
    assert [row["preference"] for row in rows_of(tmp_path)] == pytest.approx([1 + (0.6 + 0.1) / 2, 1 + (0.2 + 0.3) / 2])
    assert (entry["both_orders"], entry["order_changed"]) == (2, 1)


def test_an_endpoint_without_log_probabilities_is_refused(tmp_path: Path) -> None:
    given = spec(tmp_path, "b", preference="logprobs")
    with pytest.raises(InputError, match="no log-probabilities"):
        run(tmp_path, given, FakeJudge(lambda request: "m"), "m")
    assert not (tmp_path / "out").exists()
    # A reply whose content was refused has neither text nor log-probabilities: a failed row, not a poor endpoint.
    found = run(tmp_path, given, FakeJudge(lambda request: reply("")), "m")
    assert found["models"]["m"]["failed"] == 1


def test_replies_that_were_cut_are_warned_about_where_they_hold_a_ranking(tmp_path: Path) -> None:
    judge = FakeJudge(lambda request: reply("m", ({"m": -0.1, "M": -2.0},)))
    judge.usage.cut = judge.usage.requests = 1
    found = run(tmp_path, spec(tmp_path, "b", preference="logprobs"), judge, "m")
    assert len(found["warnings"]) == 1
    found = run(tmp_path, spec(tmp_path, "b"), judge, "m")
    assert found["warnings"][0].startswith("1 of 1 replies of the judge were ended by the limit on new tokens,")


def test_one_token_in_every_reply_is_warned_about(tmp_path: Path) -> None:
    given = spec(tmp_path, "b1", "b2", preference="logprobs")
    found = run(tmp_path, given, FakeJudge(lambda request: reply("m", ({"m": -0.1},))), "m1", "m2")
    assert "gave the log-probability of one of the two tokens only" in found["warnings"][0]


def test_annotations_and_outputs_of_further_models(tmp_path: Path) -> None:
    theirs = as_json(tmp_path / "theirs.json", annotation_rows(2, 1, generator="gpt"))
    further = as_json(tmp_path / "further.json", output_rows("f1", "f2", generator="further"))
    given = spec(tmp_path, "b1", "other", outputs={"further": str(further)}, annotations={"gpt": str(theirs)})

    def fair(request: Completion) -> str:
        answers = "".join(shown(request))
        return prefers("f" if "f" in answers else "b" if "b" in answers else "other")(request)

    found = run(tmp_path, given, FakeJudge(fair), "m1", "m2", reference="further")
    assert {name: (each["source"], each["win_rate"]) for name, each in found["models"].items()} == {
        "m": ("ours", 0),
        "further": ("outputs file", 100),
        "gpt": ("annotations file", 50),
    }
    assert [each["judge"] for each in found["models"].values()] == ["alpaca_eval_org/judge"] * 2 + ["gpt4"]
    # Preferences of two annotators are not on one scale.
    assert [(each["model"], each["than"]) for each in found["differences"]] == [("m", "further")]
    assert found["warnings"][0].startswith(
        "the models were judged by different annotators (m by alpaca_eval_org/judge,"
    )
    assert found["warnings"][1] == (
        "gpt: 1 of 2 annotations compare with another answer of base than the baseline's file holds, so that this win "
        "rate and those judged here are against different answers"
    )
    assert (tmp_path / "out" / "further" / "annotations.json").is_file()


def test_without_a_judge_only_annotations_are_scored(tmp_path: Path) -> None:
    theirs = as_json(tmp_path / "theirs.json", annotation_rows(2, 1, generator="gpt"))
    given = spec(tmp_path, "b1", "b2", judge=False, annotations={"gpt": str(theirs)})
    found = run(tmp_path, given, None, "m1", "m2")
    assert list(found["models"]) == ["gpt"]
    assert (found["judge"], found["baseline"], found["instructions"], found["usage"]) == ("gpt4", "base", 2, None)


def test_files_come_back_as_written(tmp_path: Path) -> None:
    outputs = read_outputs(as_json(tmp_path / "o.json", output_rows("a\u2028b", "half \ud83d pair")))
    write_outputs(tmp_path / "deep" / "o.json", outputs)
    assert read_outputs(tmp_path / "deep" / "o.json") == outputs
    annotations = read_annotations(as_json(tmp_path / "a.json", annotation_rows(1, None, 1.25, 0)))
    write_annotations(tmp_path / "b.json", annotations)
    assert read_annotations(tmp_path / "b.json") == annotations
    assert [each.preference for each in annotations] == [1, None, 1.25, 0]


def test_the_official_files(data_folder: Path, tmp_path: Path) -> None:
    """Ours have the fields of the real ones, each of a type that occurs there."""
    results = data_folder / "eval/alpaca_eval/results"
    outputs = read_outputs(results / "alpaca-7b/model_outputs.json")
    write_outputs(tmp_path / "o.json", outputs)
    theirs = json.loads((results / "alpaca-7b/model_outputs.json").read_text())
    assert json.loads((tmp_path / "o.json").read_text()) == theirs
    given = spec(tmp_path, price=PRICE).model_copy(
        update={"baseline": str(results / "text_davinci_003/model_outputs.json")}
    )
    (tmp_path / "alpaca_eval.txt").write_text(RANKING)
    files = read_alpaca_eval_files(given, ["m"])
    answered = {"m": results / "alpaca-7b/model_outputs.json"}
    found = evaluate_alpaca_eval(given, files, answered, tmp_path / "out", judge=FakeJudge(lambda request: FIRST))
    assert found["instructions"] == 805
    assert not any("fewer than" in each for each in found["warnings"])
    real = json.loads((results / "alpaca-7b/alpaca_eval_gpt4/annotations.json").read_text())
    ours = rows_of(tmp_path)
    assert [row["instruction"] for row in ours] == [row["instruction"] for row in real]
    assert set(ours[0]) - {"raw_completion"} == set(real[0])
    for key in real[0]:
        assert {type(row[key]) for row in ours} <= {type(row[key]) for row in real} | {float}
    ties = [row["output_1"] == row["output_2"] for row in ours]
    assert [row["raw_completion"] is None for row in ours] == ties
    assert 0 < found["models"]["m"]["ties"] == sum(ties)
