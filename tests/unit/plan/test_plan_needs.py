"""What a plan says that stages need."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from preceptor.cli import main
from preceptor.estimate.setups import ModelSetup
from preceptor.estimate.sharding import sharding_of
from preceptor.estimate.target import Device
from preceptor.plan import plan, render
from preceptor.plan.render_needs import duration, size
from preceptor.recipe import load_recipe
from preceptor.runs import run

RECIPE = """\
name: tiny
data:
  shop: {path: shop.jsonl, holdout: 2, allow_drops: true}
stages:
  student:
    kind: init
    config: &config {model_type: llama, hidden_size: 8, intermediate_size: 16, num_hidden_layers: 1,
             num_attention_heads: 2, num_key_value_heads: 1, vocab_size: 64}
    tokenizer: {kind: characters, train_on: shop, vocab_size: 64}
  teacher: {kind: init, config: *config, tokenizer: stage:student}
  kd:
    kind: distill
    student: stage:student
    teacher: stage:teacher
    data: shop
    rows_per_step: 4
    max_length: 64
    training: {per_device_train_batch_size: 2}
  said: {kind: store, teacher: stage:teacher, student: stage:student, data: shop, max_length: 64, batch_size: 4}
  learn: {kind: distill, student: stage:student, teacher: stage:said, data: shop, rows_per_step: 4, max_length: 64,
          training: {per_device_train_batch_size: 4}}
  lora: {kind: sft, model: stage:kd, data: shop, rows_per_step: 4, max_length: 64, lora: {r: 2},
         training: {per_device_train_batch_size: 4}}
  align:
    kind: distill
    student: stage:kd
    teacher: {routes: {shop: {path: stage:kd, adapter: stage:lora}}}
    data: shop
    rows_per_step: 4
    max_length: 64
    training: {per_device_train_batch_size: 4, bf16: true}
"""
KD = RECIPE[: RECIPE.index("  said:")]
"""The same without the stages after `kd`."""
KEYS = {"weights", "teacher_weights", "gradients", "optimizer", "activations", "signals", "workspaces", "overhead"}
DEVICE: dict[str, Any] = {"memory": 80_000_000_000, "flops": 1e14}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan")
    (path / "recipe.yaml").write_text(RECIPE)
    (path / "kd.yaml").write_text(KD)
    rows = [{"prompt": f"add {n} and {n}", "completion": f"it is {2 * n}"} for n in range(12)]
    (path / "shop.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(path)
        recipe = load_recipe("recipe.yaml", ["name=made"])
        run(recipe, only="student", log=silent)
        run(recipe, only="teacher", log=silent)
    return path


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def silent(line: str) -> None:
    pass


def planned(*overrides: str, recipe: str = "kd.yaml", **device: Any) -> dict[str, Any]:
    found: dict[str, Any] = plan(
        load_recipe(recipe, list(overrides)), log=silent, device=Device(**{**DEVICE, **device})
    )
    return found


@pytest.fixture(scope="module")
def before(folder: Path) -> dict[str, Any]:
    """The plan while no stage has run."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        return planned(recipe="recipe.yaml")


@pytest.fixture(scope="module")
def after(folder: Path) -> dict[str, Any]:
    """The plan when the models are there."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        return planned("name=made")


def test_every_stage_that_trains_or_stores_is_predicted_before_any_has_run(before: dict[str, Any]) -> None:
    stages = before["stages"]
    assert "memory" not in stages["student"]
    for name in ("kd", "said", "learn", "lora", "align"):
        memory = stages[name]["memory"]
        assert memory["fits"], name
        assert set(memory["parts"]) == KEYS
        assert sum(memory["parts"].values()) == memory["needed"]
        assert memory["micro_batch"]["assumed"]
    # 64 tokens a row, as many as `max_length` grants.
    assert stages["kd"]["memory"]["micro_batch"] == {"rows": 2, "tokens": 128, "assumed": True}
    assert stages["learn"]["memory"]["parts"]["teacher_weights"] == 0
    assert stages["align"]["memory"]["parts"]["teacher_weights"] > stages["kd"]["memory"]["parts"]["teacher_weights"]


def test_rows_that_are_there_are_counted(after: dict[str, Any]) -> None:
    kd = after["stages"]["kd"]
    assert not kd["memory"]["micro_batch"]["assumed"]
    assert kd["memory"]["micro_batch"]["rows"] == 2
    assert kd["time"]["steps"] == 3 * kd["steps_per_epoch"]  # transformers trains 3 epochs
    assert kd["time"]["rate"] == "stated"
    assert kd["time"]["seconds"] > kd["time"]["steps"] * kd["time"]["step_seconds"]  # held-out rows, twice
    assert kd["tokens"]["total"] >= 3 * kd["epoch"]["shop"]["tokens"]
    weights = kd["memory"]["parts"]["weights"]
    parameters = after["stages"]["kd"]["models"]["student"]["parameters"]
    assert 4 * parameters <= weights < 4 * parameters + 100
    assert kd["disk"]["model"] == 4 * parameters
    assert kd["disk"]["checkpoint"] >= 12 * parameters


def test_the_text_names_parts_time_and_disk(after: dict[str, Any]) -> None:
    text = render(after)
    kd = text[text.index("kd: distill") :]
    assert "\n  memory of a GPU: 501 MB of 80 GB at the peak (" in kd or "\n  memory of a GPU: 500 MB of 80 GB" in kd
    assert "teacher's weights" in kd
    assert "with the 2 longest rows in a pass" in kd
    assert "FLOP at 100 TFLOP/s, stated" in kd
    assert max(map(len, kd[kd.index("  memory of") :].splitlines())) <= 80
    assert "  disk: " in kd


def test_several_devices_and_sharding() -> None:
    kd = planned("name=made", devices=2)["stages"]["kd"]["memory"]
    assert (kd["devices"], kd["engine"]) == (2, "ddp")
    result = planned("name=made", "stages.kd.training.fsdp=true", devices=2)
    sharded = result["stages"]["kd"]["memory"]
    assert sharded["engine"] == "fsdp"
    assert sharded["parts"]["optimizer"] < kd["parts"]["optimizer"]
    assert "each of 2 devices (fsdp)" in render(result)


@pytest.mark.parametrize(
    ("engine", "sharded", "parted"),
    [("", None, False), ("", True, True), ("fsdp", None, True), ("fsdp", False, False), ("fsdp", "packed", False)],
)
def test_teachers_are_parted_as_a_run_parts_them(engine: str, sharded: Any, parted: bool) -> None:
    from preceptor.plan.predict import _teachers_parted
    from preceptor.recipe import ModelSpec

    base = ModelSetup(LlamaConfig(), torch.float32, {"load_in_4bit": True} if sharded == "packed" else None)
    spec = ModelSpec(path="./teacher", sharded=None if sharded == "packed" else sharded)
    stage = SimpleNamespace(teachers={("teacher",): spec})
    setup = SimpleNamespace(bases={"base": base})
    sharding = sharding_of({"fsdp": True} if engine else {}, 2, low_precision=False)
    assert _teachers_parted(stage, setup, sharding) is parted  # type: ignore[arg-type]


def test_steps_that_are_alike_are_simulated_once_and_rows_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from preceptor.data import prepare
    from preceptor.estimate import alike

    counts = {"simulate": 0, "encode_split": 0}

    def counted(module: Any, name: str) -> None:
        real = getattr(module, name)

        def count(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, count)

    counted(alike, "simulate")
    counted(prepare, "encode_split")
    said: list[str] = []
    text = (
        KD + KD[KD.index("  kd:") :].replace("  kd:", "  faster:") + KD[KD.index("  kd:") :].replace("  kd:", "  all:")
    )
    Path("sweep.yaml").write_text(text)
    recipe = load_recipe(
        "sweep.yaml",
        [
            "name=made",
            "stages.faster.training.learning_rate=0.1",
            "stages.all.rows_per_step=8",
            "stages.all.targets=all",
        ],
    )
    found = plan(recipe, log=said.append, device=Device(**DEVICE))["stages"]
    assert counts == {"simulate": 2, "encode_split": 2}
    assert found["faster"]["memory"] == found["kd"]["memory"]
    assert found["all"]["memory"] != found["kd"]["memory"]
    assert found["all"]["time"]["steps"] < found["kd"]["time"]["steps"]
    lines = {name: [line.split(": ", 1)[1] for line in said if line.startswith(name)] for name in ("kd", "faster")}
    assert lines["kd"] == lines["faster"] != []


def test_what_does_not_fit_is_told_what_helps(after: dict[str, Any]) -> None:
    result = planned("name=made", memory=after["stages"]["kd"]["memory"]["needed"] - 1)
    memory = result["stages"]["kd"]["memory"]
    assert not memory["fits"]
    changes = [each["change"] for each in memory["helps"]]
    assert any("per_device_train_batch_size: 1" in change for change in changes)
    assert [each["needed"] for each in memory["helps"]] == sorted(each["needed"] for each in memory["helps"])
    for each in memory["helps"]:
        assert each["saves"] == memory["needed"] - each["needed"] > 0
    text = render(result)
    assert "    does not fit: needs " in text
    assert "what helps:\n      `" in text or "what helps:\n      a `store`" in text


def test_a_model_that_cannot_be_simulated_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from preceptor.estimate import alike

    def refuse(*_: Any) -> None:
        raise NotImplementedError("aten::strange\nand more")

    monkeypatch.setattr(alike, "simulate", refuse)
    result = planned("name=made")
    assert result["stages"]["kd"]["memory"] == {"unknown": "NotImplementedError: aten::strange"}
    assert "\n  memory, time: unknown: NotImplementedError: aten::strange" in render(result)


def test_a_folder_with_a_config_alone(folder: Path) -> None:
    bare = folder / "bare"
    if not bare.exists():
        bare.mkdir()
        for file in (folder / "runs" / "made" / "student" / "model").glob("*.json*"):
            (bare / file.name).write_bytes(file.read_bytes())
    result = planned("stages.kd.student=./bare", "stages.kd.teacher=./bare")
    kd = result["stages"]["kd"]
    assert kd["models"]["student"]["parameters"] == 64 * 8 * 2 + 8 * 8 * 3 + 3 * 8 * 16 + 3 * 8
    assert kd["memory"]["fits"]
    assert "parameters; weights missing, and a run needs them" in render(result)


@pytest.mark.parametrize("kind", ["nosuch", "t5"])
def test_an_architecture_that_transformers_cannot_build_is_one_line(folder: Path, kind: str) -> None:
    strange = folder / kind
    strange.mkdir()
    for file in (folder / "runs" / "made" / "student" / "model").glob("token*"):
        (strange / file.name).write_bytes(file.read_bytes())
    (strange / "config.json").write_text(json.dumps({"model_type": kind}))
    result = planned(f"stages.kd.student=./{kind}")
    said = result["stages"]["kd"]["models"]["student"]["parameters"]
    assert said.startswith("parameters unknown: ")
    assert "\n" not in said
    assert len(said) < 400
    assert "\n  memory, time: unknown: " in render(result)


def test_a_recipe_for_a_gpu_is_planned_without_one() -> None:
    found = planned(
        "name=made",
        "stages.kd.training.bf16=true",
        "stages.kd.training.optim=adamw_bnb_8bit",
        "stages.kd.teacher={path: stage:teacher, quantization: {load_in_4bit: true}}",
    )["stages"]["kd"]["memory"]
    assert found["parts"]["teacher_weights"] < found["parts"]["weights"]


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--device-memory", "141GB", "--devices", "2", "--rate", "400"]
    assert main(["plan", "kd.yaml", "--json", *options]) == 0
    memory = json.loads(capsys.readouterr().out)["stages"]["kd"]["memory"]
    assert (memory["available"], memory["devices"], memory["device"]) == (141_000_000_000, 2, "cuda")
    assert main(["plan", "kd.yaml", "--json", "--quick"]) == 0
    assert "memory" not in json.loads(capsys.readouterr().out)["stages"]["kd"]


def test_units() -> None:
    assert [size(n) for n in (12, 1500, 2.5e6, 141e9, 1234e9)] == ["12 B", "1.5 kB", "2.5 MB", "141 GB", "1,234 GB"]
    assert [duration(s) for s in (0.25, 47, 600, 9000, 400_000)] == ["0.25 s", "47 s", "10.0 min", "2.5 h", "4.6 days"]
