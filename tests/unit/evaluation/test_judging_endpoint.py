"""MT-Bench and AlpacaEval over HTTP: what is paid once is not paid again, and official files come out at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from endpoint_stub import StubEndpoint, error, say
from judged import RANKING, TOKENS, answer_rows, as_json, jsonl, output_rows, prompt_rows, question_rows
from preceptor.errors import InputError, RunFailed
from preceptor.evaluation.alpaca_eval.benchmark import evaluate_alpaca_eval, read_alpaca_eval_files
from preceptor.evaluation.endpoint import Endpoint
from preceptor.evaluation.mt_bench.benchmark import evaluate_mt_bench, read_mt_bench_files
from preceptor.recipe.suites import AlpacaEvalSpec, EndpointSpec, MtBenchSpec, PriceSpec


def endpoint_spec(stub: StubEndpoint) -> EndpointSpec:
    price = PriceSpec(input=1.0, output=2.0)
    return EndpointSpec(endpoint=stub.url, model="org/judge", timeout=5.0, retries=0, concurrency=2, price=price)


def mt_bench(folder: Path, stub: StubEndpoint) -> Callable[[], dict[str, Any]]:
    spec = MtBenchSpec(
        questions=str(jsonl(folder / "q.jsonl", question_rows(*["writing", "math"] * 5))),
        prompts=str(jsonl(folder / "p.jsonl", prompt_rows())),
        references=str(jsonl(folder / "r.jsonl", answer_rows(*range(81, 91)))),
        judge=endpoint_spec(stub),
    )
    answered = {"one": jsonl(folder / "one.jsonl", answer_rows(*range(81, 91), model="one"))}

    def evaluate() -> dict[str, Any]:
        assert spec.judge is not None
        judge = Endpoint(spec.judge, cache=folder / "requests" / "mt_bench.jsonl", log=print)
        return evaluate_mt_bench(spec, read_mt_bench_files(spec, ["one"]), answered, folder, judge=judge, log=print)

    return evaluate


def alpaca_eval(folder: Path, stub: StubEndpoint, **more: Any) -> Callable[[], dict[str, Any]]:
    (folder / "prompt.txt").write_text(TOKENS if "preference" in more else RANKING)
    spec = AlpacaEvalSpec(
        baseline=str(as_json(folder / "base.json", output_rows("b1", "b2", "b3"))),
        prompt=str(folder / "prompt.txt"),
        judge=endpoint_spec(stub),
        **more,
    )
    answered = {"m": as_json(folder / "m.json", output_rows("m1", "m2", "m3", generator="m"))}

    def evaluate() -> dict[str, Any]:
        assert spec.judge is not None
        judge = Endpoint(spec.judge, cache=folder / "requests" / "alpaca_eval.jsonl", log=print)
        return evaluate_alpaca_eval(spec, read_alpaca_eval_files(spec, ["m"]), answered, folder, judge=judge)

    return evaluate


def test_a_run_that_stops_pays_for_no_judgment_twice(tmp_path: Path) -> None:
    with StubEndpoint() as stub:
        evaluate = mt_bench(tmp_path, stub)
        stub.script(*[say("Rating: [[7]]")] * 8, error(500, "down"), error(500, "down"))
        stub.answer = lambda body: error(500, "down")
        with pytest.raises(RunFailed, match="replies are kept in"):
            evaluate()
        assert not (tmp_path / "model_judgment").exists()
        kept = len((tmp_path / "requests" / "mt_bench.jsonl").read_text().splitlines())
        assert 1 <= kept <= 8
        before = len(stub.requests)
        stub.answer = lambda body: "Rating: [[7]]"
        found = evaluate()
        assert len(stub.requests) - before == 20 - kept
        again = evaluate()
        assert len(stub.requests) - before == 20 - kept
    assert found["models"] == again["models"]
    assert found["models"]["one"]["score"]["score"] == 7
    assert (found["usage"]["cached"], again["usage"]["cached"]) == (kept, 20)
    assert again["usage"]["cost"] == 0
    rows = (tmp_path / "model_judgment" / "org_judge_single.jsonl").read_text().splitlines()
    assert len(rows) == 20
    assert {body["temperature"] for body in stub.requests} == {0}
    assert {body["max_tokens"] for body in stub.requests} == {2048}


def test_rankings_over_http(tmp_path: Path) -> None:
    with StubEndpoint() as stub:
        stub.answer = lambda body: "[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]"
        found = alpaca_eval(tmp_path, stub, order="both")()
    assert (found["models"]["m"]["win_rate"], found["models"]["m"]["order_changed"]) == (50, 3)
    assert found["usage"]["requests"] == 6
    rows = json.loads((tmp_path / "m" / "annotations.json").read_text())
    assert rows[0]["price_per_example"] == pytest.approx(2 * (10 * 1 + 5 * 2) / 1e6)


def test_log_probabilities_over_http(tmp_path: Path) -> None:
    with StubEndpoint() as stub:
        stub.answer = lambda body: say("m", logprobs=[{"m": -0.69314718, "M": -0.69314718}])
        found = alpaca_eval(tmp_path, stub, preference="logprobs")()
        assert {(body["logprobs"], body["top_logprobs"], body["max_tokens"]) for body in stub.requests} == {
            (True, 5, 1)
        }
    assert found["models"]["m"]["win_rate"] == 50
    assert found["models"]["m"]["ties"] == 3


def test_an_endpoint_without_log_probabilities(tmp_path: Path) -> None:
    with StubEndpoint() as stub:
        stub.answer = lambda body: "m"
        with pytest.raises(InputError, match=r"gives no log-probabilities.*`preference: ranking`"):
            alpaca_eval(tmp_path, stub, preference="logprobs")()
    assert not (tmp_path / "m").exists()
