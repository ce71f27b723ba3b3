"""The `store` stage: what it keeps, what learns from it, where it goes on, and what makes it another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import preceptor
import stored_recipes
import stores
from preceptor.errors import InputError, RunFailed
from preceptor.models.tokenizers import load_tokenizer
from preceptor.plan import plan, render
from preceptor.recipe import ModelSpec, Recipe, StoreStage, parse_recipe
from preceptor.running.identity import stage_identities
from preceptor.stages.context import StageContext, run_directory
from preceptor.stages.encoding import stage_rows
from preceptor.stages.stores import stored_at
from preceptor.system.hashes import Hashes
from preceptor.teachers.store_files import rows_of
from preceptor.teachers.store_writer import StoredRow


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose teacher, student and store are done."""
    folder = tmp_path_factory.mktemp("made")
    for stage in ("teacher", "student", "st"):
        preceptor.run(stored_recipes.recipe(folder), only=stage, log=quiet)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be changed."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def again(folder: Path, **changes: Any) -> Recipe:
    return stored_recipes.recipe(folder, **changes)


def test_a_student_learns_what_the_live_teacher_teaches(run: Path) -> None:
    """Whole distributions give the live losses up to float16, sampled ones near them."""
    losses = {}
    for name, store, teacher in (
        ("sample", {}, "stage:st"),
        ("full", {"mode": "full"}, "stage:st"),
        ("live", {}, "stage:teacher"),
    ):
        recipe = stored_recipes.recipe(run, name, store=store, teacher=teacher)
        result = preceptor.run(recipe, log=quiet)["stages"]["kd"]
        losses[name] = [result[when][part]["logits"] for when in ("before", "after") for part in ("shop", "other")]
    assert losses["full"] == pytest.approx(losses["live"], rel=2e-3)
    assert losses["sample"] == pytest.approx(losses["live"], rel=0.05)
    assert losses["sample"] != pytest.approx(losses["live"], rel=1e-4)


def test_what_the_stage_reports(made: Path) -> None:
    result = json.loads((made / "runs/r/st/stage.json").read_text())["results"]
    assert (result["rows"], result["bytes"]) == (
        40,
        sum(f.stat().st_size for f in (made / "runs/r/st/store").glob("*.s*")),
    )
    assert result["bytes_per_target"] == pytest.approx(result["bytes"] / result["target_positions"], abs=0.01)
    assert result["written_per_second"] > 0
    assert result["read_per_second"] > 0
    assert 1 <= result["distinct_tokens"]["mean"] <= result["distinct_tokens"]["most"] <= 28
    assert result["store"]["mode"] == "sample"
    assert result["store"]["vocabulary"] == 28


def test_the_card_names_the_store(run: Path) -> None:
    preceptor.run(again(run), log=quiet)
    assert "`stage:st (stored predictions of stage:teacher, sample)`" in (run / "runs/r/kd/model/README.md").read_text()


def test_a_store_by_its_folder(run: Path) -> None:
    """As a path, and as one route's teacher beside a live one, with packing."""
    routes = {"routes": {"shop": str(run / "runs/r/st/store"), "other": "stage:teacher"}}
    result = preceptor.run(again(run, teacher=routes, packing=True), log=quiet)["stages"]["kd"]
    by_stage = preceptor.run(
        stored_recipes.recipe(run, "named", teacher={"routes": {"shop": "stage:st", "other": "stage:teacher"}}),
        log=quiet,
    )["stages"]["kd"]
    for part in ("shop", "other"):
        assert result["after"][part] == pytest.approx(by_stage["after"][part], rel=1e-4)


def test_an_attention_term_on_the_live_teachers_rows(run: Path) -> None:
    objective = [{"kind": "logits"}, {"kind": "attention", "routes": ["other"]}]
    teacher = {"routes": {"shop": "stage:st", "other": "stage:teacher"}}
    result = preceptor.run(again(run, teacher=teacher, objective=objective), log=quiet)["stages"]["kd"]
    assert set(result["after"]["shop"]) == {"logits", "targets"}
    assert result["after"]["other"]["attention"] > 0


def test_a_killed_stage_goes_on_and_ends_the_same(made: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run / "runs/r/st")
    small = {"shard_megabytes": 1}
    calls = 0
    from preceptor.teachers import store_files

    monkeypatch.setattr(store_files, "_PATIENCE", -1.0)  # a shard after each batch
    original = store_files.ShardWriter.add

    def stops(self: Any, *row: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 18:
            raise OSError("disk")
        original(self, *row)

    monkeypatch.setattr(store_files.ShardWriter, "add", stops)
    with pytest.raises(RunFailed, match="stage st failed: OSError: disk"):
        preceptor.run(again(run, store=small), only="st", log=quiet)
    assert len(list((run / "runs/r/st/store").glob("*.safetensors"))) == 4
    monkeypatch.undo()
    said: list[str] = []
    preceptor.run(again(run, store=small), only="st", log=said.append)
    assert "st: goes on after 16 of 40 rows" in said
    assert stores.content(run / "runs/r/st/store") == stores.content(made / "runs/r/st/store")


def test_what_makes_it_another_store(made: Path) -> None:
    def identity(**store: Any) -> str:
        recipe = stored_recipes.recipe(made, store=store, teacher="stage:teacher")
        return str(stage_identities(recipe, ["st"], Hashes(made / "none"))["st"]["identity"])

    assert identity(batch_size=2, shard_megabytes=1) == identity()
    changed = [{"draws": 9}, {"mode": "full"}, {"temperature": 2.0}, {"max_length": 40}, {"teacher": "stage:student"},
               {"data": ["shop"]}, {"student": "stage:teacher"}]  # fmt: skip
    assert len({identity(), *(identity(**each) for each in changed)}) == 1 + len(changed)


def test_a_students_weights_make_no_other_store(made: Path, tmp_path: Path) -> None:
    """Only its tokenizer is read."""
    folder = tmp_path / "student"
    shutil.copytree(made / "runs/r/student/model", folder)

    def identity() -> str:
        recipe = stored_recipes.recipe(made, store={"student": str(folder)})
        return str(stage_identities(recipe, ["st"], Hashes(made / "none"))["st"]["identity"])

    before = identity()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    assert identity() == before
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert identity() != before


def test_plan_says_what_it_will_take_and_what_it_holds(made: Path, tmp_path: Path) -> None:
    done = plan(stored_recipes.recipe(made), log=quiet)
    assert done["stages"]["kd"]["models"]["teacher"]["parameters"].startswith("stored (sample): 40 rows, 1,014 targets")
    assert done["stages"]["st"]["targets"] == 1014
    low, high = done["stages"]["st"]["bytes"]
    assert low <= sum(path.stat().st_size for path in (made / "runs/r/st/store").glob("*.safetensors")) <= high
    assert "the store: 1,014 targets" in render(done)
    early = plan(stored_recipes.recipe(tmp_path), log=quiet)
    assert early["stages"]["kd"]["models"]["teacher"]["parameters"] == "known after stage st"
    assert early["stages"]["st"]["data"]["shop"] == "known after stage student"
    render(early)


@pytest.mark.parametrize("mode", [{}, {"mode": "topk", "k": 5}, {"mode": "full"}])
def test_plan_counts_what_the_stage_stores(run: Path, mode: dict[str, Any]) -> None:
    """Test rows too, equal rows once, and with the targets that the stage gives them."""
    shop = (run / "shop.jsonl").read_text().splitlines()
    (run / "shop.jsonl").write_text("\n".join([*shop, *shop[:5]]) + "\n")
    test = shop[0].replace("shop", "a new")
    assert test != shop[0]
    (run / "test.jsonl").write_text(test + "\n" + test.replace("milk", "salt") + "\n")
    document = stored_recipes.document(run, "counted", store={"targets": "all", **mode}, targets="all")
    document["data"]["shop"]["test"] = "test.jsonl"
    recipe = parse_recipe(document, folder=run)
    for stage in ("teacher", "student", "st"):
        done = preceptor.run(recipe, only=stage, log=quiet)
    result, planned = done["stages"]["st"], plan(recipe, log=quiet)["stages"]["st"]
    assert planned["data"]["shop"]["test"] == 2
    assert (result["rows"], result["target_positions"]) == (planned["rows"], planned["targets"]) != (40, 1014)
    low, high = planned["bytes"]
    assert low <= result["bytes"] <= high
    rows = {StoredRow.of(row).name for row in rows_of_test(recipe)}
    assert len(rows) == 2
    assert rows <= rows_of(run / "counted/r/st/store", shard_names(run / "counted/r/st/store"))


def rows_of_test(recipe: Recipe) -> list[Any]:
    """The rows of `test:`, as a store stage encodes them."""
    context = StageContext(recipe, "st", run_directory(recipe) / "st", recipe.seed, quiet)
    stage = recipe.stages["st"]
    assert isinstance(stage, StoreStage)
    tokenizer = load_tokenizer(context.resolve_model(stage.student))
    return list(stage_rows(stage, tokenizer, context)["shop"].test)


def shard_names(store: Path) -> list[str]:
    return list(json.loads((store / "manifest.json").read_text())["shards"])


def test_a_model_is_no_store(made: Path) -> None:
    recipe = stored_recipes.recipe(made)
    context = StageContext(recipe, "kd", run_directory(recipe) / "kd", 0, quiet)
    found = [stored_at(ModelSpec(path=path), context) for path in ("stage:teacher", "org/name")]
    assert found == [None, None]
    assert stored_at(ModelSpec(path="stage:st"), context) == made / "runs/r/st/store"
    with pytest.raises(InputError, match=r"is the folder of a store stage; give the store in it, '.*/r/st/store'"):
        stored_at(ModelSpec(path=str(made / "runs/r/st")), context)


@pytest.mark.parametrize("mode", ["sample", "topk", "full"])
def test_rows_cut_elsewhere_are_not_found(run: Path, mode: str) -> None:
    """By a folder, where nothing else says how long rows were: refused before any training, by the row's name."""
    for stage in ("teacher", "student", "st"):
        preceptor.run(stored_recipes.recipe(run, "other", store={"mode": mode}), only=stage, log=quiet)
    recipe = again(run, teacher=str(run / "other/r/st/store"), max_length=50)
    with pytest.raises(InputError, match=r"jsonl:\d+ \(50 tokens\) is not in the store .*`max_length`"):
        preceptor.run(recipe, log=quiet)
    assert not (run / "runs/r/kd").exists()


def test_a_store_by_its_folder_is_known_by_its_manifest(made: Path, tmp_path: Path) -> None:
    """Which has every shard's hash: terabytes need not be read to tell whether a stage is done."""
    folder = tmp_path / "store"
    shutil.copytree(made / "runs/r/st/store", folder)
    known = Hashes(tmp_path / "none").content(folder)
    assert list(known) == ["manifest.json"]
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text() + " ")
    assert Hashes(tmp_path / "none").content(folder) != known
