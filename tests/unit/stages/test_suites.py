"""The suites of the evaluate stage: from a recipe to official files and scores.json, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from endpoint_stub import StubEndpoint, error, say
from judged import RANKING, annotation_rows, answer_rows, jsonl, judgment_row, output_rows, prompt_rows, question_rows
from preceptor.errors import InputError, InputErrors, RunFailed
from preceptor.models.save import save_model
from preceptor.models.tokenizers import train_tokenizer
from preceptor.plan import plan, render
from preceptor.recipe import Recipe, parse_recipe
from preceptor.running.identity import stage_identities
from preceptor.runs import run
from preceptor.stages import suites
from preceptor.system.hashes import Hashes

TEXT = "User: Assistant:\n\nabcdefghijklmnopqrstuvwxyz 0123456789."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and small files in the official formats."""
    folder = tmp_path_factory.mktemp("suites")
    tokenizer = train_tokenizer([TEXT], vocab_size=100, kind="characters", announce=print)
    sizes = {**toys.TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 128, "initializer_range": 0.3}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    save_model(toys.llama(0, **sizes, **ids), tokenizer, folder / "kd", dtype=torch.float32)
    jsonl(folder / "question.jsonl", question_rows("writing", "math"))
    jsonl(folder / "judge_prompts.jsonl", prompt_rows())
    jsonl(folder / "reference.jsonl", answer_rows(82, model="gpt-4"))
    jsonl(folder / "other.jsonl", [judgment_row(81, turn, 6, model="other") for turn in (1, 2)])
    (folder / "baseline.json").write_text(json.dumps(output_rows("b1", "b2", "b3")))
    (folder / "alpaca.json").write_text(json.dumps(annotation_rows(2.0, 1.0, 0.0)))
    (folder / "annotator.txt").write_text(RANKING)
    return folder


def recipe(
    folder: Path, stub: StubEndpoint, name: str, *, before: dict[str, Any] | None = None, **stage: Any
) -> Recipe:
    judge = {"endpoint": stub.url, "model": "org/judge", "concurrency": 1, "retries": 0}
    given: dict[str, Any] = {
        "kind": "evaluate",
        "models": {"kd": "kd", "served": {"endpoint": stub.url, "model": "student", "retries": 0}},
        "mt_bench": {
            "questions": "question.jsonl",
            "prompts": "judge_prompts.jsonl",
            "references": "reference.jsonl",
            "judgments": ["other.jsonl"],
            "judge": judge,
            "max_new_tokens": 4,
        },
        "alpaca_eval": {
            "baseline": "baseline.json",
            "prompt": "annotator.txt",
            "annotations": {"alpaca": "alpaca.json"},
            "judge": judge,
            "max_new_tokens": 4,
        },
        "resamples": 100,
        **stage,
    }
    raw = {"name": name, "runs_dir": str(folder / "runs"), "stages": {**(before or {}), "scores": given}}
    return parse_recipe(raw, folder=folder)


def judged(body: dict[str, Any]) -> str:
    """What the stub says: as the student an answer, as the judge 7 of 10, or the second of two answers."""
    if body["model"] == "student":
        return f"a{len(body['messages'])}"
    text = body["messages"][-1]["content"]
    return "[{'model': 'model_2', 'rank': 1}, {'model': 'model_1', 'rank': 2}]" if "model_1" in text else "[[7]]"


def silent(line: str) -> None:
    pass


def test_models_answer_and_a_judge_grades_them(folder: Path) -> None:
    said: list[str] = []
    with StubEndpoint() as stub:
        stub.answer = judged
        done = run(recipe(folder, stub, "whole"), log=said.append)["stages"]["scores"]
        paid = len(stub.requests)
    directory = folder / "runs" / "whole" / "scores"
    scores = json.loads((directory / "scores.json").read_text())
    assert list(scores["models"]) == ["kd", "served"]
    assert scores["datasets"] == {}
    bench = scores["mt_bench"]
    assert {name: (each["source"], each["score"]["score"], each["rows"]) for name, each in bench["models"].items()} == {
        "kd": ("ours", 7.0, 4),
        "served": ("ours", 7.0, 4),
        "other": ("judgments file", 6.0, 2),
    }
    alpaca = scores["alpaca_eval"]["models"]
    assert {name: (each["source"], each["rows"]) for name, each in alpaca.items()} == {
        "kd": ("ours", 3),
        "served": ("ours", 3),
        "alpaca": ("annotations file", 3),
    }
    assert alpaca["alpaca"]["win_rate"] == pytest.approx(50)
    # First questions to the judge and the student (the second judge's is in the cache), 8 grades, 6 preferences, and
    # 4 + 3 answers that are served.
    assert paid == 2 + 8 + 6 + 7
    for name in ("kd", "served"):
        lines = (directory / "mt_bench/model_answer" / f"{name}.jsonl").read_text().splitlines()
        assert [len(json.loads(line)["choices"][0]["turns"]) for line in lines] == [2, 2]
        assert len(json.loads((directory / "alpaca_eval" / name / "model_outputs.json").read_text())) == 3
        assert len(json.loads((directory / "alpaca_eval" / name / "annotations.json").read_text())) == 3
    assert len((directory / "mt_bench/model_judgment/org_judge_single.jsonl").read_text().splitlines()) == 8
    assert done["mt_bench"]["models"]["kd"]["score"] == 7.0
    assert done["alpaca_eval"]["models"]["kd"]["win_rate"] == alpaca["kd"]["win_rate"]
    assert all(warning in done["warnings"] for warning in (*bench["warnings"], *scores["alpaca_eval"]["warnings"]))
    assert any("MT-Bench" in line and "turn 1" in line for line in said)


def test_what_was_paid_for_serves_a_stage_that_is_run_again(folder: Path) -> None:
    """Another number of resamples is another stage, and so is another model; the judge's replies are the same."""
    with StubEndpoint() as stub:
        stub.answer = judged
        run(recipe(folder, stub, "again"), log=silent)
        paid = len(stub.requests)
        run(recipe(folder, stub, "again", resamples=200), redo="scores", log=silent)
        assert len(stub.requests) == paid
        more = json.loads(json.dumps(recipe(folder, stub, "again").written))
        more["stages"]["scores"]["models"]["second"] = {"path": "kd"}
        run(parse_recipe(more, folder=folder), redo="scores", log=silent)
    # The same weights under another name: its answers have the same seeds, so the judge has graded them already.
    assert len(stub.requests) == paid


def test_a_plan_tells_what_will_be_asked(folder: Path) -> None:
    with StubEndpoint() as stub:
        made = plan(recipe(folder, stub, "planned"), log=silent)
        assert stub.requests == []
    asked = made["stages"]["scores"]["suites"]
    assert asked == {
        "mt_bench": f"2 questions, 4 turns, 2 models answer; org/judge at {stub.url} is asked 8 times",
        "alpaca_eval": f"3 instructions, 2 models answer; org/judge at {stub.url} is asked 6 times",
    }
    assert f"  mt_bench: {asked['mt_bench']}" in render(made).splitlines()
    assert not (folder / "runs" / "planned").exists()


def test_without_a_judge_models_answer(folder: Path) -> None:
    with StubEndpoint() as stub:
        stub.answer = judged
        run(recipe(folder, stub, "unjudged", mt_bench={"questions": "question.jsonl", "max_new_tokens": 2},
                   alpaca_eval=None), log=silent)  # fmt: skip
        assert {body["model"] for body in stub.requests} == {"student"}
    directory = folder / "runs" / "unjudged" / "scores"
    assert json.loads((directory / "scores.json").read_text())["mt_bench"]["models"] == {}
    assert sorted(path.name for path in (directory / "mt_bench/model_answer").glob("*.jsonl")) == [
        "kd.jsonl",
        "served.jsonl",
    ]


def test_a_judge_that_stops_is_not_asked_anything_twice(folder: Path) -> None:
    with StubEndpoint() as stub:
        stub.answer = judged
        made = recipe(folder, stub, "stopped")
        count = [0]

        def stops(body: dict[str, Any]) -> Any:
            count[0] += body["model"] != "student"
            return judged(body) if count[0] <= 6 else error(500, "overloaded")

        stub.answer = stops
        with pytest.raises(RunFailed, match="preceptor run"):
            run(made, log=silent)
        stub.answer = judged
        run(made, log=silent)
        bodies = [json.dumps(body, sort_keys=True) for body in stub.requests]
    repeated = {body for body in bodies if bodies.count(body) > 1}
    assert len(repeated) == 1  # the one that got no reply
    assert len(bodies) == 23 + 1


def test_a_killed_run_pays_for_nothing_twice(folder: Path) -> None:
    """SIGKILL while the judge thinks: every reply that came is kept, and so is every answer."""
    with StubEndpoint() as stub:
        graded = [0]

        def slow(body: dict[str, Any]) -> Any:
            graded[0] += body["model"] != "student"
            return judged(body) if graded[0] != 8 else say("late").after(60)

        stub.answer = slow
        made = recipe(folder, stub, "killed")
        path = folder / "killed.json"
        path.write_text(json.dumps(made.written))
        process = subprocess.Popen(
            [sys.executable, "-m", "preceptor", "run", str(path)],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            deadline = time.monotonic() + 120
            while graded[0] < 8 and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.05)
            assert graded[0] == 8, "the run did not come that far"
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        stub.answer = judged
        before = list(stub.requests)
        run(parse_recipe(made.written, folder=folder), log=silent)
        bodies = [json.dumps(body, sort_keys=True) for body in stub.requests]
    assert len(before) == 8 + 8
    assert [body for body in set(bodies) if bodies.count(body) > 1] == [json.dumps(before[-1], sort_keys=True)]
    assert len(bodies) == 23 + 1


def test_answers_stay_where_a_judge_refuses_after_them(folder: Path) -> None:
    """Wrong input leaves nothing behind, but hours of answers are not nothing."""
    with StubEndpoint() as stub:

        def refuses(body: dict[str, Any]) -> Any:
            long = body["model"] != "student" and "Say OK." not in str(body)
            return error(401, "no") if long else judged(body)

        stub.answer = refuses
        made = recipe(folder, stub, "refuses")
        with pytest.raises((InputError, RunFailed)):
            run(made, log=silent)
        answers = folder / "runs/refuses/scores/mt_bench/model_answer/kd.jsonl"
        assert answers.is_file()
        stub.answer = judged
        run(made, log=silent)
    assert (folder / "runs/refuses/scores/stage.json").is_file()


def test_wrong_files_are_found_before_any_stage_runs(folder: Path) -> None:
    first = {"m": {"kind": "init", "config": {"model_type": "llama", **toys.TINY}, "tokenizer": "kd"}}
    with StubEndpoint() as stub:
        made = recipe(
            folder, stub, "refused", before=first, mt_bench={"questions": "baseline.json"}, alpaca_eval=None
        )  # fmt: skip
        with pytest.raises(InputErrors) as caught:
            run(made, log=silent)
        assert stub.requests == []
    [sentence] = caught.value.errors
    assert sentence.startswith("recipe: stages.scores.mt_bench.questions: ")
    assert "give the official question.jsonl" in sentence
    assert not (folder / "runs" / "refused").exists()


def test_a_key_that_is_not_set_is_found_before_any_stage_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with StubEndpoint() as stub:
        made = recipe(folder, stub, "keyless")
        raw = json.loads(json.dumps(made.written))
        raw["stages"]["scores"]["mt_bench"]["judge"]["key_env"] = "JUDGE_KEY"
        with pytest.raises(InputErrors, match=r"stages\.scores\.mt_bench\.judge: .*JUDGE_KEY"):
            run(parse_recipe(raw, folder=folder), log=silent)
    assert not (folder / "runs" / "keyless").exists()


def identity(made: Recipe) -> str:
    return str(stage_identities(made, ["scores"], Hashes(Path("absent")))["scores"]["identity"])


def test_how_an_endpoint_is_reached_changes_no_identity_and_what_it_is_does(folder: Path) -> None:
    with StubEndpoint() as stub:
        made = recipe(folder, stub, "same")
        raw = json.loads(json.dumps(made.written))
        judge = raw["stages"]["scores"]["mt_bench"]["judge"]
        judge.update(concurrency=3, timeout=9.0, retries=4, price={"input": 1, "output": 2})
        raw["stages"]["scores"]["mt_bench"]["batch_size"] = 3
        assert identity(parse_recipe(raw, folder=folder)) == identity(made)
        judge["model"] = "another"
        assert identity(parse_recipe(raw, folder=folder)) != identity(made)


def test_data_that_a_task_file_names_is_part_of_the_stage(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.json"
    data.write_text('[{"q": "a", "a": "b"}]')
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/own.yaml").write_text(
        f"task: own\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
    )
    tasks = {"names": ["own"], "include": [str(tmp_path / "tasks")]}
    with StubEndpoint() as stub:
        made = recipe(folder, stub, "tasked", mt_bench=None, alpaca_eval=None, models=["kd"], tasks=tasks)
    before = identity(made)
    (tmp_path / "tasks/__pycache__").mkdir()
    (tmp_path / "tasks/__pycache__/code.pyc").touch()
    assert identity(made) == before
    data.write_text('[{"q": "a", "a": "c"}]')
    assert identity(made) != before


def test_the_seed_and_resamples_of_the_stage_reach_its_suites(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []

    def spied(real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            given.append((named["seed"], named["resamples"]))
            return real(*arguments, **named)

        return call

    for name in ("evaluate_mt_bench", "evaluate_alpaca_eval"):
        monkeypatch.setattr(suites, name, spied(getattr(suites, name)))
    with StubEndpoint() as stub:
        stub.answer = judged
        raw = {**recipe(folder, stub, "spied", resamples=123).written, "seed": 9}
        run(parse_recipe(raw, folder=folder), log=silent)
    assert given == [(9, 123), (9, 123)]
