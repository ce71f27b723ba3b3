"""Which stages run, are kept or are refused, and what is left behind, with executors that only write files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import preceptor
from preceptor.cli import main
from preceptor.errors import InputError, InputErrors, RunFailed
from preceptor.recipe import Recipe, load_recipe
from preceptor.running import inputs
from preceptor.runs import run
from preceptor.stages import AHEAD_CHECKS, CHECKS, EXECUTORS
from preceptor.stages.context import StageContext
from preceptor.stages.datasets import specs_for
from preceptor.system import files, hashes

RECIPE = """\
name: shop
data:
  shop: {path: shop.jsonl}
  written: {path: stage:stories}
stages:
  student: {kind: init, config: {model_type: llama}}
  stories: {kind: generate, model: teacher, rows: 3}
  kd:
    kind: distill
    student: stage:student
    teacher: teacher
    data: {shop: 0.5, written: 0.5}
    training: {learning_rate: 1e-3, logging_steps: 5}
  expert: {kind: sft, model: stage:kd, data: shop, lora: {r: 4}}
"""


class Fakes:
    """Executors that note their calls, write one file, and fail where they are told to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failures: dict[str, BaseException] = {}
        self.left: dict[str, list[str]] = {}  # what each stage found in its directory

    def execute(self, spec: Any, context: StageContext) -> dict[str, Any]:
        self.calls.append(context.name)
        self.left[context.name] = sorted(file.name for file in context.directory.iterdir())
        (context.directory / "model").mkdir(exist_ok=True)
        if context.name in self.failures:
            raise self.failures[context.name]
        return {"rows": 7, "loss": float("nan"), "seed": context.seed}


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    made = Fakes()
    for kind in ("init", "generate", "sft", "distill"):
        monkeypatch.setitem(EXECUTORS, kind, made.execute)
        monkeypatch.setitem(CHECKS, kind, lambda training: None)
    monkeypatch.setitem(AHEAD_CHECKS, "one", lambda spec: None)
    monkeypatch.setitem(AHEAD_CHECKS, "pair", lambda pair: None)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "shop.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text("{}")
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def recipe(*overrides: str) -> Recipe:
    return load_recipe("recipe.yaml", overrides)


def silent(line: str) -> None:
    pass


def everything(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


ALL = ["student", "stories", "kd", "expert"]


def test_all_stages_run_in_order_and_the_record_is_whole(folder: Path, fakes: Fakes) -> None:
    lines: list[str] = []
    result = run(recipe("seed=5"), log=lines.append)

    assert fakes.calls == ALL
    assert result["name"] == "shop"
    assert result["directory"] == str(folder / "runs/shop")
    assert {name: stage["status"] for name, stage in result["stages"].items()} == dict.fromkeys(ALL, "done")
    assert result["stages"]["kd"]["rows"] == 7
    assert result["stages"]["kd"]["loss"] is None
    record = json.loads((folder / "runs/shop/kd/stage.json").read_text())
    assert set(record) == {
        "format", "stage", "kind", "given", "identity", "spec", "seed", "inputs", "results_version", "results",
        "started", "finished", "seconds", "versions", "hardware",
    }  # fmt: skip
    assert record["seed"] == 5
    assert record["results"]["seed"] == 5
    assert record["spec"]["rows_per_step"] == 16
    assert record["versions"]["preceptor"] == preceptor.__version__
    assert record["inputs"]["data.written"]["path"] == [{"stage": identity_of(folder, "stories")}]
    assert lines[0] == f"student: init, started in {folder / 'runs/shop/student'}"
    written = (folder / "runs/shop/recipe.yaml").read_text()
    assert "seed: 5" in written
    (folder / "runs/again.yaml").write_text(written)
    assert load_recipe("runs/again.yaml").stages == recipe().stages


def identity_of(folder: Path, stage: str) -> str:
    return str(json.loads((folder / "runs/shop" / stage / "stage.json").read_text())["identity"])


def test_what_is_done_is_kept_byte_for_byte(folder: Path, fakes: Fakes) -> None:
    first = run(recipe(), log=silent)
    before = everything(folder / "runs")
    result = run(recipe(), log=silent)
    assert fakes.calls == ALL
    assert {stage["status"] for stage in result["stages"].values()} == {"kept"}
    assert result["stages"]["kd"]["seconds"] == first["stages"]["kd"]["seconds"]
    assert everything(folder / "runs") == before


def test_the_public_function_is_the_same_one(folder: Path, fakes: Fakes) -> None:
    assert preceptor.run is run
    assert preceptor.load_recipe is load_recipe
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = preceptor.nothing


@pytest.mark.parametrize(
    "override",
    [
        "stages.kd.training.logging_steps=1",
        "stages.kd.training.save_steps=10",
        "stages.kd.training.report_to=none",
        "stages.kd.training.dataloader_num_workers=2",
        "stages.kd.training.per_device_train_batch_size=4",
        "stages.kd.training.use_cpu=true",
        "stages.kd.teacher.device_map=auto",
        "stages.stories.batch_size=1",
    ],
)
def test_what_cannot_change_a_result_keeps_it(override: str, folder: Path, fakes: Fakes) -> None:
    run(recipe(), log=silent)
    result = run(recipe(override), log=silent)
    assert {stage["status"] for stage in result["stages"].values()} == {"kept"}


def test_the_size_of_a_micro_batch_counts_where_load_is_balanced_within_it(folder: Path, fakes: Fakes) -> None:
    balanced = "stages.kd.objective=[{kind: logits}, {kind: router_balance}]"
    run(recipe(balanced), log=silent)
    with pytest.raises(InputErrors, match=r"per_device_train_batch_size was None, is 4"):
        run(recipe(balanced, "stages.kd.training.per_device_train_batch_size=4"), log=silent)


@pytest.mark.parametrize(
    ("override", "difference", "changed"),
    [
        ("seed=1", "seed was 43, is 1", ALL),
        ("stages.kd.rows_per_step=8", "spec.rows_per_step was 16, is 8", ["kd", "expert"]),
        ("stages.kd.training.learning_rate=1e-4", "spec.training.learning_rate was 0.001, is 0.0001", ["kd", "expert"]),
        ("stages.kd.packing=true", "spec.packing was False, is True", ["kd", "expert"]),
        (
            "stages.kd.training.load_best_model_at_end=true",
            "load_best_model_at_end was None, is True",
            ["kd", "expert"],
        ),
        ("stages.expert.lora.r=8", "spec.lora.r was 4, is 8", ["expert"]),
        ("data.shop.holdout=1", "data.shop.holdout was 0, is 1", ["kd", "expert"]),
    ],
)
def test_a_changed_recipe_is_refused_and_nothing_changes(
    override: str, difference: str, changed: list[str], folder: Path, fakes: Fakes
) -> None:
    run(recipe(), log=silent)
    before = everything(folder / "runs")
    with pytest.raises(InputErrors) as caught:
        run(recipe(override), log=silent)
    assert [Path(error.split(":")[0]).name for error in caught.value.errors] == changed
    assert difference in caught.value.errors[0]
    redo = " ".join(f"--redo {name}" for name in changed)
    assert caught.value.errors[0].endswith(
        f"undo the change, or run again with {redo}, which moves the old result aside"
    )
    assert everything(folder / "runs") == before

    result = run(recipe(override), redo=changed, log=silent)
    done = [name for name, stage in result["stages"].items() if stage["status"] == "done"]
    assert done == changed
    assert (folder / f"runs/shop/{changed[0]}.1/stage.json").exists()


@pytest.mark.parametrize("file", ["shop.jsonl", "teacher/model.safetensors"])
def test_changed_data_or_weights_are_noticed(file: str, folder: Path, fakes: Fakes) -> None:
    run(recipe(), log=silent)
    with (folder / file).open("a") as stream:
        stream.write('{"text": "b"}\n')
    with pytest.raises(InputErrors, match=r"kd: was finished with another recipe or other data \(.*"):
        run(recipe(), log=silent)


def test_data_that_moved_is_the_same_data(folder: Path, fakes: Fakes) -> None:
    run(recipe(), log=silent)
    (folder / "elsewhere").mkdir()
    (folder / "shop.jsonl").rename(folder / "elsewhere" / "rows.jsonl")
    (folder / "teacher").rename(folder / "elsewhere" / "teacher")
    (folder / "elsewhere" / "teacher" / "README.md").write_text("a note changes nothing")
    text = RECIPE.replace("shop.jsonl", "elsewhere/rows.jsonl").replace(
        "teacher: teacher", "teacher: elsewhere/teacher"
    )
    (folder / "recipe.yaml").write_text(text.replace("model: teacher", "model: elsewhere/teacher"))
    result = run(recipe(), log=silent)
    assert {stage["status"] for stage in result["stages"].values()} == {"kept"}


def test_hub_commits_decide(folder: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = {"owner/teacher": "a" * 40}
    monkeypatch.setattr(inputs, "hub_commit", lambda name, revision, kind: commits[name])
    run(recipe("stages.kd.teacher=owner/teacher"), log=silent)
    commits["owner/teacher"] = "b" * 40
    with pytest.raises(InputErrors, match=r"the content of teacher.path.commit has changed"):
        run(recipe("stages.kd.teacher=owner/teacher"), log=silent)


def test_a_commit_needs_no_hub() -> None:
    assert inputs.hub_commit("owner/name", "c" * 40, "model") == "c" * 40


def test_a_failed_stage_says_how_to_go_on_and_goes_on(folder: Path, fakes: Fakes) -> None:
    fakes.failures["kd"] = LookupError("no\nmore")
    with pytest.raises(RunFailed) as caught:
        run(recipe("seed=7"), log=silent)
    error = folder / "runs/shop/kd/error.txt"
    assert str(caught.value) == (
        "stage kd failed: LookupError: no more; what is finished is kept, and once the cause is mended "
        f"`preceptor run recipe.yaml seed=7` goes on from there (traceback: {error})"
    )
    assert "LookupError" in error.read_text()
    assert not (folder / "runs/shop/kd/stage.json").exists()

    del fakes.failures["kd"]
    fakes.calls.clear()
    result = run(recipe("seed=7"), log=silent)
    assert fakes.calls == ["kd", "expert"]
    assert fakes.left["kd"] == ["model", "started.json"], "the stage finds what it left"
    assert [stage["status"] for stage in result["stages"].values()] == ["kept", "kept", "done", "done"]
    assert not error.exists()


def test_a_begun_stage_does_not_go_on_with_another_recipe(folder: Path, fakes: Fakes) -> None:
    fakes.failures["kd"] = RuntimeError("stopped")
    with pytest.raises(RunFailed):
        run(recipe(), log=silent)
    with pytest.raises(InputErrors, match=r"kd: was begun with another recipe .*spec.rows_per_step was 16, is 8"):
        run(recipe("stages.kd.rows_per_step=8"), log=silent)
    del fakes.failures["kd"]
    run(recipe("stages.kd.rows_per_step=8"), redo="kd", log=silent)
    assert fakes.left["kd"] == ["started.json"]


def test_files_of_no_run_are_not_touched(folder: Path, fakes: Fakes) -> None:
    (folder / "runs/shop/kd").mkdir(parents=True)
    (folder / "runs/shop/kd/precious").touch()
    with pytest.raises(InputErrors, match=r"kd: holds files but no started.json, so they are of no run; "):
        run(recipe(), log=silent)
    assert list(everything(folder / "runs")) == ["shop/kd/precious"]


def test_killed_while_a_file_was_written(folder: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        """What no cleaning up follows."""

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        patch.setattr(Path, "unlink", die)
        with pytest.raises(Killed):
            files.write_atomic(folder / "started.json", "{}")
    kd = folder / "runs/shop/kd"
    kd.mkdir(parents=True)
    [unfinished] = folder.glob(".started.json.*")
    unfinished.rename(kd / unfinished.name)
    run(recipe(), log=silent)
    assert fakes.left["kd"] == ["started.json"]
    assert not list(kd.glob(".*"))


def test_wrong_input_found_by_a_stage_leaves_nothing(folder: Path, fakes: Fakes) -> None:
    before = everything(folder)
    fakes.failures["student"] = InputError("tokenizers differ")
    with pytest.raises(InputError, match="tokenizers differ"):
        run(recipe(), log=silent)
    assert everything(folder) == before
    assert not (folder / "runs").exists()

    fakes.failures = {"kd": InputError("tokenizers differ")}
    with pytest.raises(InputError):
        run(recipe(), log=silent)
    assert sorted(file.name for file in (folder / "runs/shop").iterdir()) == [
        ".lock", "recipe.yaml", "stories", "student",
    ]  # fmt: skip


def test_wrong_input_found_late_leaves_what_was_worked_out(folder: Path, fakes: Fakes) -> None:
    def work(spec: Any, context: StageContext) -> dict[str, Any]:
        (context.directory / "rows.partial.jsonl").write_text("hours")
        raise InputError("row 1000 is wrong")

    EXECUTORS["generate"] = work  # put back by the fixture
    with pytest.raises(InputError, match="row 1000 is wrong"):
        run(recipe(), log=silent)
    assert (folder / "runs/shop/stories/rows.partial.jsonl").read_text() == "hours"
    EXECUTORS["generate"] = fakes.execute
    run(recipe(), log=silent)
    assert fakes.left["stories"] == ["rows.partial.jsonl", "started.json"]


def test_a_redone_stage_that_refuses_its_input_keeps_its_old_result(folder: Path, fakes: Fakes) -> None:
    run(recipe(), log=silent)
    before = everything(folder / "runs")
    fakes.failures["kd"] = InputError("tokenizers differ")
    lines: list[str] = []
    with pytest.raises(InputError, match="tokenizers differ"):
        run(recipe(), redo="kd", log=lines.append)
    assert everything(folder / "runs") == before
    assert lines[-1] == f"kd: the old result is back in {folder / 'runs/shop/kd'}"
    del fakes.failures["kd"]
    assert {stage["status"] for stage in run(recipe(), log=silent)["stages"].values()} == {"kept"}


def test_a_file_named_in_training_counts_by_its_content(folder: Path, fakes: Fakes) -> None:
    override = "stages.kd.training.deepspeed=parts.json"
    with pytest.raises(InputErrors) as caught:
        run(recipe(override), log=silent)
    assert caught.value.errors == [
        "recipe.yaml: stages.kd.training.deepspeed: 'parts.json' cannot be read (No such file or directory); give the "
        "path of a file, from the working directory, or write its content here as a mapping"
    ]
    (folder / "parts.json").write_text("{}")
    run(recipe(override), log=silent)
    (folder / "parts.json").rename(folder / "moved.json")
    moved = override.replace("parts", "moved")
    assert run(recipe(moved), log=silent)["stages"]["kd"]["status"] == "kept"
    (folder / "moved.json").write_text('{"bf16": true}')
    with pytest.raises(InputErrors, match=r"kd: was finished with .*the content of training.deepspeed has changed"):
        run(recipe(moved), log=silent)


@pytest.mark.parametrize(
    "other", ["{path: shop.jsonl, test: 'stage:stories'}", "{path: [shop.jsonl, 'stage:stories']}"]
)
def test_rows_of_a_later_stage_do_not_concern_the_stages_before(other: str, folder: Path, fakes: Fakes) -> None:
    text = RECIPE.replace("stages:\n", "stages:\n  first: {kind: sft, model: teacher, data: shop}\n")
    text = text.replace("name: shop", "name: shop\noverlap: {drop_from: shop}").replace("{path: stage:stories}", other)
    (folder / "recipe.yaml").write_text(text)
    run(recipe(), log=silent)
    record = json.loads((folder / "runs/shop/first/stage.json").read_text())
    assert list(record["inputs"]) == ["model", "overlap", "data.shop"]
    assert "data.written" in json.loads((folder / "runs/shop/kd/stage.json").read_text())["inputs"]
    context = StageContext(recipe(), "first", folder / "runs/shop/first", 43, silent)
    assert list(specs_for(["shop"], context)[0]) == ["shop"]
    specs, generated = specs_for(["written", "stage:stories"], context)
    assert list(specs) == ["written", "stage:stories", "shop"]
    assert generated == {"stage:stories"}, "rows of a file are compared with other data"


def test_checks_come_before_the_first_stage(folder: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(training: dict[str, Any]) -> None:
        raise InputErrors(["training.one: wrong", "training.two: wrong"])

    def check_model(spec: Any) -> None:
        assert Path(spec.path) == folder / "teacher"
        raise InputError("the file is cut")

    monkeypatch.setitem(CHECKS, "distill", check)
    monkeypatch.setitem(AHEAD_CHECKS, "one", check_model)
    with pytest.raises(InputErrors) as caught:
        run(recipe(), log=silent)
    assert caught.value.errors == [
        "recipe.yaml: stages.stories.model: the file is cut",
        "recipe.yaml: stages.kd.training.one: wrong",
        "recipe.yaml: stages.kd.training.two: wrong",
    ]
    assert fakes.calls == []
    assert not (folder / "runs").exists()


def test_only_runs_one_stage(folder: Path, fakes: Fakes) -> None:
    with pytest.raises(InputErrors) as caught:
        run(recipe(), only="kd", log=silent)
    assert caught.value.errors == [
        "--only kd: reads stage student, which is not done; run --only student first",
        "--only kd: reads stage stories, which is not done; run --only stories first",
    ]
    assert not (folder / "runs").exists()
    for name in ("student", "stories", "kd"):
        assert list(run(recipe(), only=name, log=silent)["stages"]) == [name]
    assert fakes.calls == ["student", "stories", "kd"]


def test_missing_files_are_all_named_and_only_for_what_runs(folder: Path, fakes: Fakes) -> None:
    (folder / "shop.jsonl").unlink()
    (folder / "teacher").rename(folder / "away")
    changed = recipe("stages.kd.teacher=./teacher", "stages.stories.model=./teacher")
    with pytest.raises(InputErrors) as caught:
        run(changed, log=silent)
    assert [error.split(": ")[1] for error in caught.value.errors] == [
        "stages.stories.model",
        "stages.kd.teacher",
        "data.shop.path",
    ]
    assert "'shop.jsonl' does not exist: there is no shop.jsonl in" in caught.value.errors[2]
    assert not (folder / "runs").exists()
    assert list(run(changed, only="student", log=silent)["stages"]) == ["student"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "kdd"], "--only kdd: recipe.yaml has no stage of that name (did you mean 'kd'?); it has student, "),
        (["--redo", "exprt"], "--redo exprt: recipe.yaml has no stage of that name (did you mean 'expert'?); it has "),
        (["--only", "kd", "--redo", "expert"], "--redo expert: is not run with --only kd; leave one of them out"),
        (
            ["--out", "shop.jsonl"],
            "/shop.jsonl/shop: the run directory cannot be written (Not a directory); set runs_dir",
        ),
        (
            ["runs_dir=$NO_SUCH"],
            "override 'runs_dir=$NO_SUCH': runs_dir is wrong: '$NO_SUCH' uses the environment variable NO_SUCH",
        ),
        (["data.shop.path=teacher/x.jsonl"], "data.shop.path: 'teacher/x.jsonl' does not exist: there is no teacher/x"),
        (["stages.kd.teacher=./none"], "recipe.yaml: stages.kd.teacher: './none' does not exist: there is no none in "),
    ],
)
def test_wrong_input_to_run(
    arguments: list[str], sentence: str, folder: Path, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(folder)
    assert main(["run", "recipe.yaml", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert everything(folder) == before
    assert not (folder / "runs").exists()


def test_a_damaged_record_is_named(folder: Path, fakes: Fakes) -> None:
    run(recipe(), log=silent)
    (folder / "runs/shop/kd/stage.json").write_text("{")
    with pytest.raises(InputError, match=r"kd/stage.json: is not a readable record of a stage; move the folder"):
        run(recipe(), log=silent)


def test_a_failure_on_the_command_line(folder: Path, fakes: Fakes, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.failures["kd"] = RuntimeError("out of memory")
    assert main(["run", "recipe.yaml"]) == 1
    error = capsys.readouterr().err
    assert "error: stage kd failed: RuntimeError: out of memory; what is finished is kept" in error
    assert "Traceback" not in error


def test_an_interruption_on_the_command_line(folder: Path, fakes: Fakes, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.failures["kd"] = KeyboardInterrupt()
    assert main(["run", "recipe.yaml", "seed=3"]) == 130
    assert capsys.readouterr().err.endswith(
        "stage kd was interrupted; what is finished is kept, and `preceptor run recipe.yaml seed=3` goes on "
        "from there\n"
    )


def test_results_on_the_command_line(folder: Path, fakes: Fakes, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--json", "recipe.yaml", "--out", "there", "seed=3", "--only", "student"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert result["stages"]["student"]["status"] == "done"
    assert result["directory"] == str(folder / "there/shop")
    assert "student: done in" in output.err


HOLD = """
import sys
from pathlib import Path
from preceptor.running.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the run directory, until the end of its standard input."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "held\n"
            yield holder
        finally:
            holder.kill()


def test_a_run_directory_in_use_is_refused(folder: Path, fakes: Fakes) -> None:
    with held(folder / "runs/shop") as holder:
        with pytest.raises(
            InputError, match=rf"runs/shop: the run directory is in use by process {holder.pid} on .*; wait"
        ):
            run(recipe(), log=silent)
        assert fakes.calls == []
        assert holder.stdin is not None
        holder.stdin.close()
        assert holder.wait(200) == 0
        run(recipe(), log=silent)


def test_the_lock_goes_with_a_killed_process(folder: Path, fakes: Fakes) -> None:
    with held(folder / "runs/shop") as holder:
        holder.kill()
        holder.wait()
        assert list(run(recipe(), log=silent)["stages"]) == ALL


def test_python_dash_m(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "preceptor", "run", "none.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: none.yaml: there is no such file; give the path of a recipe (YAML)\n"


def test_large_files_are_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes.Hashes, "_LARGE", 1)
    monkeypatch.setattr(hashes, "_RACE", 0)  # the file is a moment old
    store = folder / "hashes.json"
    first = hashes.Hashes(store)
    expected = first.file(folder / "shop.jsonl")
    first.save()
    reads: list[Path] = []
    monkeypatch.setattr(hashes, "sha256_file", lambda path: reads.append(path) or "new")
    assert hashes.Hashes(store).file(folder / "shop.jsonl") == expected
    assert reads == []
    (folder / "shop.jsonl").write_text("longer than before, so the size differs")
    assert hashes.Hashes(store).file(folder / "shop.jsonl") == "new"
    store.write_text("damaged")
    assert hashes.Hashes(store).file(folder / "shop.jsonl") == "new"
