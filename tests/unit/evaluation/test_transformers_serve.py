"""A real local server, `transformers serve` with the pocket teacher, as what answers and as what judges."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import judged
from preceptor.data.template import ChatTemplate, Message
from preceptor.errors import InputError
from preceptor.evaluation.answers import greedy_answers
from preceptor.evaluation.endpoint import Completion, Endpoint
from preceptor.evaluation.endpoint_answers import EndpointAnswerer
from preceptor.evaluation.mt_bench.answers import answer_mt_bench
from preceptor.evaluation.mt_bench.benchmark import evaluate_mt_bench, read_mt_bench_files
from preceptor.pocket.methods import TEACHER
from preceptor.recipe.suites import EndpointSpec, MtBenchSpec
from served import served

pytestmark = pytest.mark.slow

ASKED = ["add 12 34", "reverse abcd", "larger 123 456", "subtract 98 41", "copy kqzt", "add 77 15"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(TEACHER, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def spec(url: str) -> EndpointSpec:
    return EndpointSpec(endpoint=url, model=str(TEACHER), timeout=60.0, retries=1, concurrency=2)


def user(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def texts(endpoint: Endpoint, requests: list[Completion]) -> list[str]:
    found = dict(endpoint.complete(requests, "served"))
    return [found[i].text for i in range(len(requests))]


def test_served_answers_are_our_own(spec: EndpointSpec, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(TEACHER).eval()
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    template = ChatTemplate(tokenizer)
    prompts = [template.render(user(text), add_generation_prompt=True) for text in ASKED]
    tokens = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    expected = greedy_answers(model, tokenizer, tokens, max_new_tokens=12, batch_size=3)
    assert "46" in expected

    endpoint = Endpoint(spec, cache=tmp_path / "cache.jsonl", log=print)
    found = dict(endpoint.complete([Completion(user(text), 12) for text in ASKED], "served"))
    assert [found[i].text for i in range(len(ASKED))] == expected
    assert {reply.finish_reason for reply in found.values()} == {"stop"}
    assert [found[i].prompt_tokens for i in range(len(ASKED))] == [len(each) for each in tokens]
    assert endpoint.usage.completion_tokens > 0
    assert endpoint.usage.uncounted == 0


def test_whatever_may_be_sent_is_taken(spec: EndpointSpec, tmp_path: Path) -> None:
    """This server refuses fields it does not know with 422."""
    endpoint = Endpoint(spec, cache=tmp_path / "cache.jsonl", log=print)
    requests = [
        Completion(user(ASKED[0]), 12, temperature=None),
        Completion(user(ASKED[0]), 12, temperature=0.7, seed=3, top_p=0.9),
        Completion(({"role": "system", "content": "be short"}, *user(ASKED[0])), 12),
        Completion(user("repeat " + "ab" * 20), 2),
    ]
    found = dict(endpoint.complete(requests, "served"))
    assert found[0].text == "46"
    assert found[3].finish_reason == "length"
    assert endpoint.usage.cut == 1


def test_it_gives_no_log_probabilities_and_does_not_say_so(spec: EndpointSpec, tmp_path: Path) -> None:
    endpoint = Endpoint(spec, cache=tmp_path / "cache.jsonl", log=print)
    found = dict(endpoint.complete([Completion(user(ASKED[0]), 12, top_logprobs=5)], "served"))
    assert found[0].text == "46"
    assert found[0].logprobs is None


def test_a_model_it_does_not_serve(spec: EndpointSpec, tmp_path: Path) -> None:
    endpoint = Endpoint(spec.model_copy(update={"model": "some/model"}), cache=tmp_path / "cache.jsonl", log=print)
    with pytest.raises(InputError, match=r"^some/model at http.*the endpoint knows no such model"):
        texts(endpoint, [Completion(user(ASKED[0]), 12)])
    assert not (tmp_path / "cache.jsonl").exists()


def test_mt_bench_answered_and_judged_by_it(spec: EndpointSpec, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question_id": 81 + i, "category": "writing", "turns": [ASKED[i], ASKED[i + 1]]} for i in range(3)
    ]
    suite = MtBenchSpec(
        questions=str(judged.jsonl(tmp_path / "question.jsonl", rows)),
        prompts=str(judged.jsonl(tmp_path / "judge_prompts.jsonl", judged.prompt_rows())),
        judge=spec,
        temperatures={"writing": 0.0},
        max_new_tokens=12,
        judge_max_tokens=8,
    )
    files = read_mt_bench_files(suite, ["pocket"])

    def run() -> tuple[dict[str, Any], Endpoint, Endpoint]:
        answering = Endpoint(spec, cache=tmp_path / "requests" / "answers.jsonl", log=print)
        judge = Endpoint(spec, cache=tmp_path / "requests" / "judge.jsonl", log=print)
        path = tmp_path / "mt_bench" / "model_answer" / "pocket.jsonl"
        answer_mt_bench(files.questions, EndpointAnswerer(answering, name="pocket"), suite, path, 43, print)
        return evaluate_mt_bench(suite, files, {"pocket": path}, tmp_path / "mt_bench", judge=judge), answering, judge

    result, answering, judge = run()
    answers = (tmp_path / "mt_bench" / "model_answer" / "pocket.jsonl").read_text().splitlines()
    assert json.loads(answers[0])["choices"][0]["turns"][0] == "46"
    assert answering.usage.requests == judge.usage.requests == 6
    # This judge cannot write a grade: nothing of it may get into a mean.
    entry = result["models"]["pocket"]
    assert (entry["score"], entry["rows"], entry["failed"], entry["missing"]) == (None, 0, 6, 0)
    assert result["usage"]["completion_tokens"] == judge.usage.completion_tokens > 0
    again, _, judge = run()
    assert again["models"] == result["models"]
    assert judge.usage.requests == judge.usage.cached
