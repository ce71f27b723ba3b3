"""What a user is told about task suites that cannot be run: one sentence, before a model is loaded."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from preceptor.errors import InputError
from preceptor.evaluation import tasks
from preceptor.evaluation.tasks import check_tasks, run_tasks
from preceptor.recipe import ModelSpec
from preceptor.recipe.suites import TasksSpec

lm_eval = pytest.importorskip("lm_eval.tasks", reason="needs lm-evaluation-harness: pip install '.[eval]'")

TASK = """\
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: [a, b]
doc_to_target: answer
"""


@pytest.fixture
def own_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness's own 15,000 tasks are not there: their index takes four seconds."""
    manager = lm_eval.TaskManager
    monkeypatch.setattr(lm_eval, "TaskManager", lambda **given: manager(**{**given, "include_defaults": False}))


def said(spec: TasksSpec, folder: Path | None = None, **given: Any) -> str:
    """The message of the check or, with a folder to write to, of the run."""
    run = check_tasks if folder is None else partial(run_tasks, {"m": ModelSpec(path="no-model")}, directory=folder)
    with pytest.raises(InputError) as refused:
        run(spec, where="stages.scores.tasks") if folder is None else run(spec=spec, where="stages.scores.tasks")
    assert folder is None or not list(folder.iterdir())
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_the_harness_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert said(TasksSpec(names=["letters"])) == (
        "stages.scores.tasks: needs lm-evaluation-harness, which is not installed; install it with `pip install "
        "'lm-eval>=0.4.13'`, or leave `tasks` out"
    )


def test_folders(tmp_path: Path) -> None:
    missing = TasksSpec(names=["letters"], include=[str(tmp_path / "none")])
    assert said(missing) == (
        f"stages.scores.tasks.include: {tmp_path / 'none'} is not a folder; give the path of a folder of task files"
    )
    assert said(TasksSpec(names=["letters"], include=[str(tmp_path)])) == (
        f"stages.scores.tasks.include: {tmp_path} holds no task file; give a folder with files whose names end in .yaml"
    )


def test_a_name_that_the_harness_does_not_know() -> None:
    message = said(TasksSpec(names=["helaswag"]))
    assert message.startswith("stages.scores.tasks.names: 'helaswag' is no task or group of lm-eval 0.")
    assert message.endswith(" (did you mean 'hellaswag'?); `lm-eval ls tasks` lists its own")


@pytest.mark.usefixtures("own_tasks_only")
def test_a_name_that_no_folder_has(tmp_path: Path) -> None:
    (tmp_path / "letters.yaml").write_text(TASK)
    spec = TasksSpec(names=["leters"], include=[str(tmp_path)])
    assert f" or of {tmp_path} (did you mean 'letters'?); `lm-eval ls tasks` lists its own" in said(spec)
    (tmp_path / "others.yaml").write_text("task: [letters\n")
    assert said(spec).startswith(
        f"stages.scores.tasks.names: 'leters' is in no file that can be read, and {tmp_path / 'others.yaml'} cannot ("
        "while parsing a flow sequence"
    )


@pytest.mark.usefixtures("own_tasks_only")
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("", ""), "cannot be loaded (FileNotFoundError: Unable to find '{folder}/rows.jsonl'"),
        (("task: letters", "task: letters\nnonsense: 1"), "cannot be loaded (TypeError: "),
        (("output_type: multiple_choice", "output_type: poem"), "cannot be loaded ("),
    ],
)
def test_a_task_that_cannot_be_loaded(tmp_path: Path, change: tuple[str, str], expected: str) -> None:
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "letters.yaml").write_text(TASK.replace(*change))
    (tmp_path / "out").mkdir()
    message = said(TasksSpec(names=["letters"], include=[str(folder)]), tmp_path / "out")
    with pytest.raises(InputError) as refused:
        check_tasks(TasksSpec(names=["letters"], include=[str(folder)]), where="stages.scores.tasks", data=True)
    assert str(refused.value) == message
    assert message.startswith(
        f"stages.scores.tasks.names: 'letters' ({folder / 'letters.yaml'}) {expected.format(folder=folder)}"
    )
    assert message.endswith("); mend it or leave it out")


@pytest.mark.usefixtures("own_tasks_only")
def test_data_on_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(path: str, **_: Any) -> Any:
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "letters.yaml").write_text(TASK.replace("dataset_path: json", "dataset_path: some/letters"))
    (tmp_path / "out").mkdir()
    message = said(TasksSpec(names=["letters"], include=[str(tmp_path / "suite")]), tmp_path / "out")
    assert message == (
        f"stages.scores.tasks.names: the data of 'letters' ({tmp_path / 'suite' / 'letters.yaml'}) is on the Hugging "
        "Face Hub and not in its cache, and the Hub cannot be reached (Couldn't reach 'some/letters' on the Hub "
        "(LocalEntryNotFoundError)); run it once with a network, or name tasks whose data is local"
    )


@pytest.mark.usefixtures("own_tasks_only")
def test_tasks_that_execute_what_a_model_wrote(tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "letters.yaml").write_text(TASK + "unsafe_code: true\n")
    (tmp_path / "suite" / "rows.jsonl").write_text('{"question": "q", "answer": 0}\n')
    (tmp_path / "out").mkdir()
    assert said(TasksSpec(names=["letters"], include=[str(tmp_path / "suite")]), tmp_path / "out") == (
        "stages.scores.tasks.names: 'letters' executes code that a model wrote, which is not done here; leave it out, "
        "or run it with lm-eval itself in a sandbox"
    )


@pytest.mark.usefixtures("own_tasks_only")
@pytest.mark.parametrize(
    ("names", "both", "task"),
    [
        (["letters", "pair"], "'letters' and 'pair'", "letters"),
        (["nested", "digits", "letters"], "'nested' and 'letters'", "letters"),
        (["pair", "nested"], "'pair' and 'nested'", "letters"),
        (["signs", "tagged"], "'signs' and 'tagged'", "digits"),
        (["named", "signs"], "'named' and 'signs'", "digits"),
    ],
)
def test_a_task_that_two_names_hold(tmp_path: Path, names: list[str], both: str, task: str) -> None:
    lm_eval_refuses(tmp_path, names)
    assert said(TasksSpec(names=names, include=[str(tmp_path)])) == (
        f"stages.scores.tasks.names: {both} both ask the task {task!r}, which the harness refuses to run twice; keep "
        "one of the two"
    )


@pytest.mark.usefixtures("own_tasks_only")
@pytest.mark.parametrize("names", [["letters", "digits"], ["digits", "signs"], ["pair", "alone", "digits"], ["nested"]])
def test_tasks_that_each_have_one_name(tmp_path: Path, names: list[str]) -> None:
    groups_of_tasks(tmp_path)
    check_tasks(TasksSpec(names=names, include=[str(tmp_path)]), data=True)


def groups_of_tasks(folder: Path) -> None:
    (folder / "rows.jsonl").write_text('{"question": "q", "answer": 0}\n')
    (folder / "letters.yaml").write_text(TASK)
    (folder / "digits.yaml").write_text(TASK.replace("task: letters", "task: digits\ntag: signs"))
    own = "{task: inner, dataset_path: json, dataset_kwargs: {data_files: {test: rows.jsonl}}, test_split: test, "
    own += "output_type: multiple_choice, doc_to_text: q, doc_to_choice: [a, b], doc_to_target: answer}"
    groups = {
        "pair": f"[letters, {own}]",
        "nested": "[{group: within, task: [{group: pair}]}]",
        "tagged": "[signs]",
        "named": "[{task: digits, num_fewshot: 0}]",
        "alone": f"[{own}]",
    }
    for name, members in groups.items():
        (folder / f"{name}.yaml").write_text(f"group: {name}\ntask: {members}\n")


def lm_eval_refuses(folder: Path, names: list[str]) -> None:
    """The harness itself, once all data is read."""
    groups_of_tasks(folder)
    manager = lm_eval.TaskManager(include_path=[folder])
    rows, data = "rows.jsonl", str(folder / "rows.jsonl")
    for file in folder.glob("*.yaml"):
        file.write_text(file.read_text().replace(rows, data))
    with pytest.raises(ValueError, match="Duplicate task"):
        manager.load(names)


@pytest.mark.usefixtures("own_tasks_only")
@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"max_position_embeddings": 65}, None),
        ({"max_position_embeddings": 99, "text_config": {"max_position_embeddings": 32}}, 32),
        ({"n_positions": 16}, 16),
        ({}, None),
    ],
)
def test_answers_longer_than_a_context_are_known_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], refused: int | None
) -> None:
    monkeypatch.setattr(tasks, "check_model", lambda spec: SimpleNamespace(config=config))
    groups_of_tasks(tmp_path)
    written = TASK.replace("multiple_choice", "generate_until").replace("doc_to_choice: [a, b]\n", "")
    (tmp_path / "written.yaml").write_text(
        written.replace("letters", "written") + 'generation_kwargs: {until: ["."], max_gen_toks: 64}\n'
    )
    (tmp_path / "all.yaml").write_text("group: all\ntask: [letters, written]\n")
    models = {"hub": ModelSpec(path="some/model"), "small": ModelSpec(path=str(tmp_path))}
    check = partial(check_tasks, where="stages.scores.tasks", models=models)
    spec = TasksSpec(names=["all"], include=[str(tmp_path)])
    check(spec)
    check(spec.model_copy(update={"names": ["letters"]}), data=True)
    if refused is None:
        check(spec, data=True)
        return
    with pytest.raises(InputError) as caught:
        check(spec, data=True)
    assert str(caught.value) == (
        f"stages.scores.tasks.names: written allows answers of 64 tokens, and the context of small is {refused}; write "
        "a smaller `max_gen_toks` into the task, or leave it out"
    )
