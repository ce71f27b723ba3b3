"""Wrong ways to spread a stage over processes: each gives its one sentence."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.testing._internal.two_tensor import TwoTensor

import toys
from preceptor.errors import InputError
from preceptor.models.sharding import shard
from preceptor.stages.build import check_training
from preceptor.training.engine import EngineTrainer
from preceptor.training.engine_checks import check_engine, check_plugin
from refusals import check_refusal

GOOD = """\
name: shop
data:
  shop: {path: shop.jsonl}
stages:
  kd:
    kind: distill
    student: {path: student}
    teacher: {path: teacher}
    data: shop
    training: {learning_rate: 1e-4}
  stories: {kind: generate, model: {path: other}, rows: 10}
"""
TRAINING = "{learning_rate: 1e-4}"
CASES: dict[str, tuple[str, str, str]] = {
    "both engines": (
        TRAINING,
        "{fsdp: true, deepspeed: zero.json}",
        "10: stages.kd.training has both `fsdp` and `deepspeed`; keep one of them",
    ),
    "fsdp and a device map": (
        "teacher: {path: teacher}\n    data: shop\n    training: {learning_rate: 1e-4}",
        "teacher: {path: teacher, device_map: auto}\n    data: shop\n    training: {fsdp: true}",
        "10: stages.kd.training.fsdp shards over one process per device, and the `device_map` of teacher spreads over "
        "the devices of one process; keep one of them",
    ),
    "sharded and a device map": (
        "{path: teacher}",
        "{path: teacher, sharded: true, device_map: auto}",
        "8: stages.kd.teacher.sharded is true, and `device_map` says too where the weights are; keep one of them",
    ),
    "sharded and quantised": (
        "{path: teacher}",
        "{path: teacher, sharded: true, quantization: {quant_method: bitsandbytes, load_in_4bit: true}}",
        "8: stages.kd.teacher.sharded is true, and quantised weights cannot be cut into shards; write false, or remove "
        "`quantization`",
    ),
    "a sharded student": (
        "{path: student}",
        "{path: student, sharded: true}",
        "7: stages.kd.student.sharded is a key of a distill stage's teachers; remove it (a student is sharded with "
        "`fsdp: true` in `training`)",
    ),
    "a sharded model of another kind of stage": (
        "{path: other}",
        "{path: other, sharded: false}",
        "11: stages.stories.model.sharded is a key of a distill stage's teachers; remove it (a student is sharded with "
        "`fsdp: true` in `training`)",
    ),
    "settings of FSDP without it": (
        TRAINING,
        "{fsdp_config: {version: 2}}",
        "10: stages.kd.training.fsdp_config has no effect without `fsdp: true`; add that, or remove it",
    ),
    "FSDP 1": (
        TRAINING,
        "{fsdp: true, fsdp_config: {fsdp_version: 1}}",
        "10: stages.kd.training.fsdp_config.fsdp_version is 1, whose flat parameters have no output head of their own; "
        "write 2, or remove it",
    ),
    "its own checkpointing": (
        TRAINING,
        "{fsdp: true, fsdp_config: {activation_checkpointing: true}}",
        "10: stages.kd.training.fsdp_config.activation_checkpointing is not used here; write `gradient_checkpointing: "
        "true` into `training` instead",
    ),
    "its own checkpoints": (
        TRAINING,
        "{fsdp: true, fsdp_config: {state_dict_type: FULL_STATE_DICT}}",
        "10: stages.kd.training.fsdp_config.state_dict_type is not used here; remove it; checkpoints are always "
        "written in shards, and finished models whole",
    ),
    "FSDP 1's way to ask for it": (
        TRAINING,
        "{fsdp: full_shard auto_wrap}",
        "10: stages.kd.training.fsdp is 'full_shard auto_wrap', and accepted are true and false; what FSDP 1 had there "
        "goes into `fsdp_config`",
    ),
    "settings in a file": (
        TRAINING,
        "{fsdp: true, fsdp_config: fsdp.json}",
        "10: stages.kd.training.fsdp_config is 'fsdp.json', and accepted is a mapping; write the file's keys here",
    ),
    "cut by size": (
        TRAINING,
        "{fsdp: true, fsdp_config: {auto_wrap_policy: SIZE_BASED_WRAP}}",
        "10: stages.kd.training.fsdp_config.auto_wrap_policy is 'SIZE_BASED_WRAP', and accepted are "
        "TRANSFORMER_BASED_WRAP or NO_WRAP",
    ),
    "a quantised student": (
        "{path: student}\n    teacher: {path: teacher}\n    data: shop\n    training: {learning_rate: 1e-4}",
        "{path: student, quantization: {load_in_4bit: true}}\n    lora: {r: 2}\n    teacher: {path: teacher}\n"
        "    data: shop\n    training: {fsdp: true}",
        "11: stages.kd.training.fsdp cuts weights by rows, and the `quantization` of student packs them; keep one of "
        "them",
    ),
    "an unknown setting": (
        TRAINING,
        "{fsdp: true, fsdp_config: {reshard_after_foward: true}}",
        "10: stages.kd.training.fsdp_config.reshard_after_foward is not a key of FSDP2 (did you mean "
        "'reshard_after_forward'?); accepted are version, reshard_after_forward, auto_wrap_policy or "
        "transformer_layer_cls_to_wrap",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_that_contradicts_itself(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    check_refusal(GOOD, CASES[name], tmp_path, capsys)


ALONE = {
    "training: {fsdp: true}": (
        "stages.kd.training.fsdp: shards the student over several processes, and this is the only one; start them with "
        "torchrun or accelerate launch, or remove `fsdp`"
    ),
    "teacher: {path: models/one, sharded: true}": (
        "stages.kd.teacher.sharded: is true, and this is the only process; start several with torchrun or accelerate "
        "launch, or remove it"
    ),
}


@pytest.mark.parametrize("change", ALONE)
def test_one_process(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before the first stage, by `run`; `plan` shows it all the same."""
    from preceptor.recipe import load_recipe
    from preceptor.recipe.sharding import needs_processes

    monkeypatch.chdir(tmp_path)
    key = change.partition(":")[0]
    lines = [change if line.strip().startswith(f"{key}:") else line.strip() for line in GOOD.splitlines()[5:10]]
    Path("r.yaml").write_text("\n".join([*GOOD.splitlines()[:5], *(f"    {line}" for line in lines)]) + "\n")
    recipe = load_recipe("r.yaml", [])
    assert [f"stages.kd.{each}" for each in needs_processes(recipe.stages["kd"])] == [ALONE[change]]


def refusal(work: Any, *given: Any, **named: Any) -> str:
    with pytest.raises(InputError) as caught:
        work(*given, **named)
    return str(caught.value)


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="it is installed")
def test_deepspeed_that_is_not_installed() -> None:
    assert refusal(check_training, {"deepspeed": {"zero_optimization": {"stage": 2}}}) == (
        "training.deepspeed: needs the package deepspeed, which is not installed; install it, or shard with "
        "`fsdp: true`"
    )


def test_a_precision_that_the_launcher_alone_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert refusal(check_training, {"use_cpu": True}) == (
        "training: the launcher asks for bf16 (ACCELERATE_MIXED_PRECISION), which the recipe does not; write `bf16: "
        "true` into `training`, or start the processes with --mixed_precision no"
    )
    check_training({"use_cpu": True, "bf16": True})


def test_fsdp_of_one_process_and_of_a_spread_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = toys.llama(1)
    args = toys.training_arguments(output_dir=str(tmp_path), use_cpu=True, fsdp=True)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert refusal(check_engine, student, args) == (
        "training.fsdp: shards the student over several processes, and this is the only one; start them with torchrun "
        "or accelerate launch, or remove `fsdp`"
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(type(args), "world_size", 2)
    check_engine(student, args)
    student.lm_head.weight = torch.nn.Parameter(student.lm_head.weight.to(torch.uint8), requires_grad=False)
    assert refusal(check_engine, student, args) == (
        "student: its weight 'lm_head.weight' is quantised and cannot be cut into shards; leave out `quantization`, or "
        "`fsdp` of `training`"
    )
    student.hf_device_map = {"": 0}
    assert refusal(check_engine, student, args) == (
        "student: `device_map` and FSDP both decide where its weights are; remove `device_map`, or `fsdp` of `training`"
    )


def test_settings_that_the_launcher_chose() -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    assert refusal(check_plugin, plugin) == (
        "training.fsdp_config: version 1 of FSDP keeps no weight in its own shape, and the losses need the head's; "
        "write `version: 2` (accelerate launch: --fsdp_version 2)"
    )
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, activation_checkpointing=True)
    assert refusal(check_plugin, plugin) == (
        "training.fsdp_config: `activation_checkpointing` is FSDP's own way of recomputing layers; write "
        "`gradient_checkpointing: true` into `training` instead"
    )
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_offload=True)
    assert refusal(check_plugin, plugin) == "training.fsdp_config: `cpu_offload` is not used here; remove it"
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="SIZE_BASED_WRAP", min_num_params=100)
    assert refusal(check_plugin, plugin) == (
        "training.fsdp_config: SIZE_BASED_WRAP would cut lists of layers, which nobody calls; write "
        "`auto_wrap_policy: TRANSFORMER_BASED_WRAP`, or remove it"
    )
    check_plugin(FullyShardedDataParallelPlugin(fsdp_version=2))


def test_checkpoints_of_a_sharded_student_without_its_optimiser(tmp_path: Path) -> None:
    args = toys.training_arguments(output_dir=str(tmp_path), use_cpu=True, fsdp=True, save_only_model=True)
    assert refusal(check_engine, toys.llama(1), args) == (
        "training.save_only_model: under FSDP and DeepSpeed a checkpoint has weights and optimiser states in the same "
        "files; remove it"
    )


def test_a_teacher_that_cannot_be_cut() -> None:
    model = toys.llama(1).requires_grad_(False)
    assert refusal(shard, model, torch.device("cpu"), name="teacher big") == (
        "teacher big: `sharded: true` cuts it over several processes, and this is the only one; start them with "
        "torchrun or accelerate launch, or leave `sharded` out"
    )
    layer = model.model.layers[0].mlp.up_proj
    plain = layer.weight.data
    for packed in (plain.to(torch.uint8), plain.to(torch.float8_e4m3fn), TwoTensor(plain, plain)):
        layer.weight = torch.nn.Parameter(packed, requires_grad=False)
        assert refusal(shard, model, torch.device("cpu"), name="teacher big") == (
            "teacher big: its weight 'model.layers.0.mlp.up_proj.weight' is quantised and cannot be cut into shards; "
            "write `sharded: false` for a whole copy on each device, or leave `quantization` out"
        )


def test_a_checkpoint_of_another_engine(tmp_path: Path) -> None:
    class Stub(EngineTrainer):
        def __init__(self, fsdp: bool) -> None:
            self.is_fsdp_enabled, self.is_deepspeed_enabled = fsdp, False

    (tmp_path / "model.safetensors").touch()
    Stub(fsdp=False).check_checkpoint(tmp_path)
    assert refusal(Stub(fsdp=True).check_checkpoint, tmp_path) == (
        f"{tmp_path}: was written under one process or DDP, and this training runs under FSDP, which cannot go on from "
        "it; take that engine again, or delete the checkpoints to start over"
    )
    (tmp_path / "latest").touch()
    assert refusal(Stub(fsdp=False).check_checkpoint, tmp_path) == (
        f"{tmp_path}: was written under DeepSpeed, and this training runs under one process or DDP, which cannot go on "
        "from it; take that engine again, or delete the checkpoints to start over"
    )
    (tmp_path / "latest").unlink()
    (tmp_path / "shards-00000.safetensors").touch()
    Stub(fsdp=True).check_checkpoint(tmp_path)
    Stub(fsdp=False).check_checkpoint(tmp_path)
