"""Two processes write one store: the rows that one process writes, and what one began another goes on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch.distributed as dist

import preceptor
import stored_recipes
import stores
from invariant.ranks import on_two_ranks
from preceptor.stages import train
from preceptor.stages.context import StageContext, run_directory
from preceptor.stages.store import execute


def quiet(line: str) -> None:
    pass


def written(folder: Path, runs: str) -> dict[str, object]:
    """The store stage alone, as `runs` executes it."""
    recipe = stored_recipes.recipe(folder, runs)
    directory = run_directory(recipe) / "st"
    directory.mkdir(parents=True, exist_ok=True)
    return execute(recipe.stages["st"], StageContext(recipe, "st", directory, recipe.seed, quiet))  # type: ignore[arg-type]


def taught(folder: Path, runs: str) -> dict[str, object]:
    """The stage that learns from the store."""
    recipe = stored_recipes.recipe(folder, runs)
    directory = run_directory(recipe) / "kd"
    directory.mkdir(exist_ok=True)
    return train.execute(recipe.stages["kd"], StageContext(recipe, "kd", directory, recipe.seed, quiet))  # type: ignore[arg-type]


def on_rank(rank: int, folder: Path) -> None:
    stored = written(folder, "two")
    dist.barrier()  # as a run's first process has the others wait for its word
    results = {"st": stored, "kd": taught(folder, "two")}
    (folder / f"results-{rank}.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores written by one process and by two, of one teacher."""
    folder = tmp_path_factory.mktemp("ranks")
    for stage in ("teacher", "student"):
        preceptor.run(stored_recipes.recipe(folder, "one"), only=stage, log=quiet)
    shutil.copytree(folder / "one", folder / "two")
    written(folder, "one")
    return on_two_ranks(on_rank, folder)


def test_two_processes_write_what_one_does(folder: Path) -> None:
    two = folder / "two/r/st/store"
    assert {path.name for path in two.iterdir()} == {"manifest.json", "000-00000.safetensors", "001-00000.safetensors"}
    assert stores.content(two) == stores.content(folder / "one/r/st/store")
    manifests = [json.loads((folder / f"{runs}/r/st/store/manifest.json").read_text()) for runs in ("one", "two")]
    for key in ("rows", "target_positions", "teacher", "tokenizer", "template", "seed"):
        assert manifests[0][key] == manifests[1][key]
    shards = manifests[1]["shards"].values()
    assert sum(shard["rows"] for shard in shards) == manifests[1]["rows"]
    assert all(shard["rows"] >= 16 for shard in shards), "both have their share"
    assert json.loads((folder / "results-1.json").read_text())["st"] == {}
    assert json.loads((folder / "results-0.json").read_text())["st"]["rows"] == manifests[1]["rows"]


def test_two_processes_learn_from_it_what_one_does(folder: Path) -> None:
    one = json.loads(json.dumps(taught(folder, "one")))
    for rank in (0, 1):
        two = json.loads((folder / f"results-{rank}.json").read_text())["kd"]
        assert two["steps"] == one["steps"]
        for part, terms in one["after"].items():
            assert two["after"][part] == pytest.approx(terms, rel=1e-4)


def test_one_process_goes_on_where_two_were_stopped(folder: Path) -> None:
    shutil.copytree(folder / "two", folder / "parts")
    store = folder / "parts/r/st/store"
    # As the two left it: what each had written is in its journal, which goes when the manifest is written.
    for name, facts in json.loads((store / "manifest.json").read_text())["shards"].items():
        (store / f"{name.partition('-')[0]}.journal").write_text(json.dumps({name: facts["sha256"]}))
    (store / "manifest.json").unlink()
    (store / "001-00000.safetensors").unlink()
    kept = (store / "000-00000.safetensors").stat().st_mtime_ns
    written(folder, "parts")
    assert (store / "000-00000.safetensors").stat().st_mtime_ns == kept
    assert {path.name for path in store.iterdir()} == {
        "manifest.json",
        "000-00000.safetensors",
        "000-00001.safetensors",
    }
    assert stores.content(store) == stores.content(folder / "one/r/st/store")
