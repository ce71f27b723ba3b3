"""Task suites on toy models: the harness's accuracy is ours, results are kept, and nothing else is said."""

from __future__ import annotations

import json
import logging
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import toys
from preceptor.data.rows import Row
from preceptor.errors import InputError
from preceptor.evaluation import tasks
from preceptor.evaluation.evaluate import evaluate_models
from preceptor.evaluation.harness import caught
from preceptor.evaluation.rows import EvaluationSet, question
from preceptor.evaluation.tasks import check_tasks, run_tasks
from preceptor.models.load import load_model
from preceptor.models.save import save_model
from preceptor.models.tokenizers import load_tokenizer, train_tokenizer
from preceptor.recipe import ModelSpec
from preceptor.recipe.suites import TasksSpec

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install '.[eval]'")

TEXT = "User: Assistant:\n\nabcdefgh 0123"
CHOICES = ["ab c", "0 eh", "bbbb", "gf 1"]  # of one length, lest the shortest always win
# A choice begins with the space that the default template writes before an answer.
LETTERS = """\
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl, train: rows.jsonl}}
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}]
metadata: {version: 3}
"""
WRITING = """\
task: writing
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["b"], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
READING = """\
task: reading
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]
"""
GROUP = """\
group: both
task: [letters, {group: written, task: [writing]}]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an adapter on it, task files and their rows."""
    folder = tmp_path_factory.mktemp("suites")
    tokenizer = train_tokenizer([TEXT], vocab_size=100, kind="characters", announce=print)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {**toys.TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "initializer_range": 0.3}
    model = toys.llama(1, torch.float32, sharpness=2.0, **sizes, **ids)
    save_model(model, tokenizer, folder / "model", dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    save_model(adapted, tokenizer, folder / "adapter", dtype=torch.float32)
    (folder / "suite").mkdir()
    for name, text in (("letters", LETTERS), ("writing", WRITING), ("reading", READING), ("both", GROUP)):
        (folder / "suite" / f"{name}.yaml").write_text(text)
    lines = [{**row, "choices": [f" {choice}" for choice in row["choices"]]} for row in rows()]
    (folder / "suite" / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def rows() -> list[dict[str, Any]]:
    """90 questions with two to four choices."""
    draw = random.Random(4)
    return [
        {
            "question": "".join(draw.choices("abcdefgh 0123", k=draw.randint(3, 20))).strip() or "a",
            "choices": CHOICES[: 2 + i % 3],
            "answer": draw.randint(0, 1),
        }
        for i in range(90)
    ]


def models(folder: Path) -> dict[str, ModelSpec]:
    path = str(folder / "model")
    return {"plain": ModelSpec(path=path), "adapted": ModelSpec(path=path, adapter=str(folder / "adapter"))}


def suite(folder: Path, *names: str, **changes: Any) -> TasksSpec:
    return TasksSpec(names=list(names), include=[str(folder / "suite")], **changes)


def ours(folder: Path) -> dict[str, list[float]]:
    """Our own scores of the same rows."""
    asked = [
        Row(
            "letters",
            (
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["choices"][row["answer"]]},
            ),
            None,
            {"metric": "accuracy", "choices": row["choices"]},
            f"rows.jsonl:{number}",
        )
        for number, row in enumerate(rows(), 1)
    ]
    data = EvaluationSet("letters", "general", "test", tuple(question(row) for row in asked))
    scores = evaluate_models(models(folder), [data], resamples=100, directory=folder / "ours")
    assert set(scores["models"]) == {"plain", "adapted"}
    files = {name: folder / "ours" / "predictions" / f"{name}.jsonl" for name in scores["models"]}
    predictions = {name: [json.loads(line) for line in file.read_text().splitlines()] for name, file in files.items()}
    for found in predictions.values():
        assert len({each["answer"] for each in found if len(each["choices"]) == 4}) > 1  # the question matters
    return {name: [each["score"] for each in found] for name, found in predictions.items()}


@pytest.fixture(scope="module")
def run(folder: Path) -> tuple[dict[str, Any], list[str]]:
    lines: list[str] = []
    spec = suite(folder, "letters", "writing", "reading", batch_size=3)
    check_tasks(spec)
    return run_tasks(models(folder), spec, directory=folder / "out", seed=5, log=lines.append), lines


def test_the_accuracy_is_ours(folder: Path, run: tuple[dict[str, Any], list[str]]) -> None:
    found, _ = run
    own = ours(folder)
    for name, scores in own.items():
        entry = found["models"][name]["letters"]
        share = sum(scores) / len(scores)
        assert 0 < share < 1
        assert entry == {
            "metric": "acc",
            "filter": "none",
            "value": pytest.approx(share, abs=1e-12),
            "stderr": pytest.approx(math.sqrt(share * (1 - share) / 89), abs=1e-12),
            "rows": 90,
            "higher_is_better": True,
        }
    assert own["plain"] != own["adapted"]  # the adapter was applied


def test_every_metric_has_an_entry_and_the_file_the_rest(folder: Path, run: tuple[dict[str, Any], list[str]]) -> None:
    found, _ = run
    assert found["harness"].startswith("lm-eval 0.")
    assert found["warnings"] == []
    assert list(found["models"]["plain"]) == ["letters", "letters acc_norm", "writing", "reading"]
    assert found["models"]["plain"]["writing"]["metric"] == "exact_match"
    kept = json.loads((folder / "out" / "tasks" / "plain.json").read_text())
    assert kept["versions"]["letters"] == 3
    assert kept["config"]["fewshot_seed"] == kept["config"]["torch_seed"] == 5
    assert kept["configs"]["letters"]["doc_to_text"] == "{{question}}"
    assert kept["results"]["letters"]["acc,none"] == found["models"]["plain"]["letters"]["value"]


def test_perplexity_is_that_of_the_model(folder: Path, run: tuple[dict[str, Any], list[str]]) -> None:
    found, _ = run
    model = load_model(models(folder)["plain"], role="teacher")
    tokenizer = load_tokenizer(models(folder)["plain"])
    total, count = 0.0, 0
    for row in rows():
        # The harness's definition: the begin token before what the tokenizer makes of a text, begin token included.
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(row["question"])["input_ids"]]])
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].double().log_softmax(-1)
        total += float(log_probs.gather(1, ids[0, 1:, None]).sum())
        count += len(row["question"].encode())
    entry = found["models"]["plain"]["reading"]
    assert entry["value"] == pytest.approx(math.exp(-total / count), rel=1e-5)
    assert entry["higher_is_better"] is False


def test_the_harness_itself_is_silent(
    folder: Path,
    run: tuple[dict[str, Any], list[str]],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, lines = run
    monkeypatch.chdir(tmp_path)  # no git repository
    assert [line.split(":")[0] for line in lines] == ["plain (1 of 2)"] * 2 + ["adapted (2 of 2)"] * 2
    assert lines[0].endswith("the model has no chat template; the default one is used")
    assert "letters acc 0." in lines[1]
    run_tasks({"plain": models(folder)["plain"]}, suite(folder, "letters", limit=2), directory=tmp_path, log=print)
    out, err = capfd.readouterr()
    assert err == ""
    assert [line[:16] for line in out.splitlines()] == ["plain (1 of 1): "] * 2


def test_what_the_harness_prints_goes_nowhere_and_our_lines_through(capsys: pytest.CaptureFixture[str]) -> None:
    with caught(print) as noise:
        print("bootstrapping for stddev: f1")
        print("10%|#", file=sys.stderr)
        for _ in range(2):
            logging.getLogger("lm_eval.api.task").warning("no split for %s", "examples")
        noise.say("likelihoods: 3 of 9 requests")
    print("after")
    assert capsys.readouterr() == ("likelihoods: 3 of 9 requests\nafter\n", "")
    assert list(noise.warnings) == ["no split for examples"]


def test_results_of_the_same_request_are_kept(
    folder: Path, run: tuple[dict[str, Any], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_model(*_: Any, **__: Any) -> Any:
        raise AssertionError("loaded a model")

    found, _ = run
    monkeypatch.setattr(tasks, "load_model", no_model)
    lines: list[str] = []
    same = suite(folder, "letters", "writing", "reading", batch_size=16)  # the batch size changes speed only
    again = run_tasks(models(folder), same, directory=folder / "out", seed=5, log=lines.append)
    assert again == found
    assert lines == [f"{title}: its task results are there, kept" for title in ("plain (1 of 2)", "adapted (2 of 2)")]
    others: Sequence[tuple[TasksSpec, int]] = [(same, 6), (suite(folder, "letters", "writing", limit=3), 5)]
    for spec, seed in others:
        with pytest.raises(AssertionError, match="loaded a model"):
            run_tasks(models(folder), spec, directory=folder / "out", seed=seed)


@pytest.mark.parametrize("place", ["outside", "suite"])
def test_edited_data_are_measured_again(folder: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "suite").mkdir()
    (tmp_path / "outside").mkdir()
    data = tmp_path / place / "rows.jsonl"
    lines = (folder / "suite" / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "suite" / "letters.yaml").write_text(LETTERS.replace("rows.jsonl", str(data)) + "tag: signs\n")
    spec = TasksSpec(names=["signs"], include=[str(tmp_path / "suite")])
    said: list[str] = []

    def rows_scored(count: int) -> int:
        data.write_text("".join(lines[:count]))
        plain = {"plain": models(folder)["plain"]}
        found = run_tasks(plain, spec, directory=tmp_path / "out", log=said.append)
        return int(found["models"]["plain"]["letters"]["rows"])

    assert rows_scored(5) == 5
    assert rows_scored(5) == 5
    assert said[-1].endswith("its task results are there, kept")
    assert rows_scored(4) == 4
    assert not said[-1].endswith("kept")


def test_groups_few_shots_limits_and_cut_prompts(folder: Path, tmp_path: Path) -> None:
    spec = suite(folder, "both", limit=4, num_fewshot=9, chat_template=False)
    plain = {"plain": models(folder)["plain"]}
    found = run_tasks(plain, spec, directory=tmp_path, log=lambda line: None)
    kept = json.loads((tmp_path / "tasks" / "plain.json").read_text())
    assert kept["n-shot"]["letters"] == 9
    assert list(found["models"]["plain"]) == ["both"]  # a group with a mean of its own is one entry
    assert found["models"]["plain"]["both"]["value"] == kept["results"]["letters"]["acc,none"]
    assert found["models"]["plain"]["both"]["rows"] == 8
    assert kept["cut"] > 0  # nine examples are longer than 64 tokens
    assert found["warnings"] == [
        "tasks: at most 4 examples of each were asked (`limit`), so these scores are for trials only",
        "tasks: some prompts are longer than the context of plain and were cut from the left",
    ]


def test_answers_longer_than_the_context(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "writing.yaml").write_text(WRITING.replace("max_gen_toks: 4", "max_gen_toks: 64"))
    (tmp_path / "suite" / "rows.jsonl").write_bytes((folder / "suite" / "rows.jsonl").read_bytes())
    spec = TasksSpec(names=["writing"], include=[str(tmp_path / "suite")])
    with pytest.raises(InputError) as refused:
        run_tasks({"plain": models(folder)["plain"]}, spec, directory=tmp_path, where="stages.scores.tasks")
    assert str(refused.value) == (
        "stages.scores.tasks.names: writing allows answers of 64 tokens, and the context of plain is 64; write a "
        "smaller `max_gen_toks` into the task, or leave it out"
    )
