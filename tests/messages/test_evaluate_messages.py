"""What a user is told about rows and models that cannot be evaluated: one sentence, before any weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from preceptor.data.rows import Row
from preceptor.data.split import SplitRows
from preceptor.errors import InputError
from preceptor.evaluation import answers, evaluate
from preceptor.evaluation.evaluate import evaluate_models
from preceptor.evaluation.rows import EvaluationSet, evaluation_set, question
from preceptor.models.save import save_model
from preceptor.models.tokenizers import train_tokenizer
from preceptor.recipe import DatasetSpec, ModelSpec

SPEC = DatasetSpec(path="d.jsonl")


def row(answer: str | None = "yes", line: int = 3, **extra: Any) -> Row:
    messages = [{"role": "user", "content": "q"}]
    messages += [{"role": "assistant", "content": answer}] if answer is not None else []
    return Row("shop", tuple(messages), None, extra, f"d.jsonl:{line}")  # type: ignore[arg-type]


# what the row has beside its question -> what is said
ROWS: dict[str, tuple[Row, str]] = {
    "unknown metric": (
        row(metric="acuracy"),
        "d.jsonl:3: the metric 'acuracy' is unknown (did you mean 'accuracy'?); accepted are exact, accuracy or "
        "rougeL, or leave `metric` out to measure likelihood alone",
    ),
    "metric of another spelling": (
        row(metric="ROUGE-L"),
        "d.jsonl:3: the metric 'ROUGE-L' is unknown (did you mean 'rougeL'?); accepted are exact, accuracy or "
        "rougeL, or leave `metric` out to measure likelihood alone",
    ),
    "metric that is no text": (
        row(metric=3),
        "d.jsonl:3: the metric 3 is unknown; accepted are exact, accuracy or rougeL, or leave `metric` out to measure "
        "likelihood alone",
    ),
    "no choices": (
        row(metric="accuracy"),
        "d.jsonl:3: has the metric 'accuracy' and no `choices`; give the list of answers to choose from, the right one "
        "among them",
    ),
    "empty choices": (
        row(metric="accuracy", choices=[]),
        "d.jsonl:3: has the metric 'accuracy' and no `choices`; give the list of answers to choose from, the right one "
        "among them",
    ),
    "answer not among the choices": (
        row("maybe", metric="accuracy", choices=["yes", "no"]),
        "d.jsonl:3: its answer 'maybe' is not among its choices ['yes', 'no']; the right answer must be one of them, "
        "letter for letter",
    ),
    "one choice": (
        row(metric="accuracy", choices=["yes"]),
        "d.jsonl:3: `choices` is ['yes']; give a list of at least two different texts, none of them empty",
    ),
    "equal choices": (
        row(metric="accuracy", choices=["yes", "yes "]),
        "d.jsonl:3: `choices` is ['yes', 'yes ']; give a list of at least two different texts, none of them empty",
    ),
    "choices of numbers": (
        row(metric="accuracy", choices=["yes", "no", 3]),
        "d.jsonl:3: `choices` is ['yes', 'no', 3]; give a list of at least two different texts, none of them empty",
    ),
    "choices as one text": (
        row(metric="accuracy", choices="yes, no"),
        "d.jsonl:3: `choices` is 'yes, no'; give a list of at least two different texts, none of them empty",
    ),
    "no answer": (
        row(None, metric="exact"),
        "d.jsonl:3: has the metric 'exact' and no assistant turn that holds the right answer; add it, or leave "
        "`metric` out to measure likelihood alone",
    ),
    "no question": (
        Row("shop", ({"role": "assistant", "content": "a"},), None, {"metric": "exact"}, "d.jsonl:3"),  # type: ignore[arg-type]
        "d.jsonl:3: has the metric 'exact' and no message before the answer, so nothing is asked; add the question, or "
        "leave `metric` out to measure likelihood alone",
    ),
    "task that is no name": (
        row(metric="exact", task=["a"]),
        "d.jsonl:3: the task ['a'] is no name; write a text, or leave `task` out",
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_row_that_cannot_be_scored(case: str) -> None:
    with pytest.raises(InputError) as caught:
        question(ROWS[case][0])
    assert str(caught.value) == ROWS[case][1]


def test_one_task_has_one_metric() -> None:
    rows = [row(task="t", metric="exact", line=1), row(task="t", line=2), row(task="t", metric="rougeL", line=9)]
    with pytest.raises(InputError) as caught:
        evaluation_set(SplitRows("shop", [], [], rows), SPEC)
    assert str(caught.value) == (
        "d.jsonl:9: the task 't' of data shop has rows of the metrics exact and rougeL; give them different tasks"
    )


def test_a_dataset_without_rows_to_evaluate() -> None:
    with pytest.raises(InputError) as caught:
        evaluation_set(SplitRows("shop", [row()], [], []), SPEC, where="stages.scores.on: ")
    assert str(caught.value) == (
        "stages.scores.on: data shop has neither `test` nor `holdout` rows, and rows that were trained on tell nothing "
        "about a model; give it `test: PATH` or `holdout: N`"
    )


# --- models ----------------------------------------------------------------------------------------------------


def model(folder: Path, text: str) -> ModelSpec:
    tokenizer = train_tokenizer([text], vocab_size=60, kind="characters", announce=print)
    made = toys.llama(1, vocab_size=60, hidden_size=16, intermediate_size=24)
    save_model(made, tokenizer, folder, dtype=torch.float32)
    return ModelSpec(path=str(folder))


def refusal(models: dict[str, ModelSpec], sets: list[EvaluationSet], monkeypatch: Any, **options: Any) -> str:
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(evaluate, "load_model", load)
    with pytest.raises(InputError) as caught:
        evaluate_models(models, sets, **options)
    return str(caught.value)


@pytest.mark.parametrize(("role", "what"), [("general", "reference"), ("domain", "expert")])
def test_tokenizers_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: Any, what: str) -> None:
    models = {"one": model(tmp_path / "one", "User: Assistant:\nqyes"), "two": model(tmp_path / "two", "zyxw")}
    sets = [EvaluationSet("shop", role, "test", (question(row()),))]
    said = refusal(models, sets, monkeypatch, **{"reference": "one", what: "one"})
    assert said == (
        f"models.two: its tokenizer is not that of the {what} one, and KL compares two models token by token; evaluate "
        f"models of one tokenizer together, or leave out `{what}`"
    )


def test_a_model_with_weights_on_disk(tmp_path: Path) -> None:
    away = model(tmp_path / "one", "User: Assistant:\nqyes").model_copy(update={"device_map": {"": "disk"}})
    with pytest.raises(InputError) as caught:
        evaluate_models({"one": away}, [EvaluationSet("shop", "domain", "test", (question(row()),))])
    # accelerate 1.13 refuses by itself to put a whole model there.
    assert "could not be loaded (You are trying to offload the whole model to the disk." in str(caught.value) or (
        str(caught.value)
        == "models.one: `device_map` left some of its weights off the devices (offloaded), which only a teacher may; "
        "give it more devices, or quantise it"
    )


def test_no_row_that_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"one": model(tmp_path / "one", "User: Assistant:\nqyes")}
    sets = [EvaluationSet("shop", "domain", "holdout", (question(row("")), question(row("a</s>b"))))]
    assert refusal(models, sets, monkeypatch) == (
        "data shop: none of its 2 holdout rows can be evaluated: 1 the answer is empty; 1 a message spells the control "
        "token '</s>'; mend the rows, or raise max_length"
    )


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rouge_score.rouge_scorer", None)
    answers._rouge.cache_clear()
    with pytest.raises(InputError) as caught:
        answers.rouge_l("a", "a")
    assert str(caught.value) == (
        "metric rougeL: needs the package rouge-score, which is not installed; run `pip install rouge-score`"
    )
