"""Rules about what several processes hold together: FSDP and DeepSpeed in `training:`, and `sharded` of a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from preceptor.errors import accepted, did_you_mean, shown
from preceptor.recipe.base import KeyPath
from preceptor.recipe.stages import Stage, models_of
from preceptor.recipe.training import DistillStage, SftStage

_FSDP_KEYS = (
    "version",
    "reshard_after_forward",
    "auto_wrap_policy",
    "transformer_layer_cls_to_wrap",
)
_WRAPS = ("TRANSFORMER_BASED_WRAP", "NO_WRAP")
# Keys that transformers takes as well, and why they are not.
_OTHER_FSDP_KEYS = {
    "activation_checkpointing": "write `gradient_checkpointing: true` into `training` instead",
    "cpu_offload": "remove it; a student's weights and optimiser states stay on the devices",
    "min_num_params": "remove it; every layer is gathered by itself, whatever its size",
    "cpu_ram_efficient_loading": "remove it; each process reads the model and keeps its part",
    "state_dict_type": "remove it; checkpoints are always written in shards, and finished models whole",
}


def check_sharding(path: KeyPath, stage: Stage) -> Iterator[tuple[KeyPath, str]]:
    """Yields where and how a stage's sharding contradicts itself."""
    for key, model in models_of(stage).items():
        if model.sharded is None:
            continue
        at = (*path, *key, "sharded")
        if not (isinstance(stage, DistillStage) and key[0] == "teacher"):
            yield (
                at,
                "is a key of a distill stage's teachers; remove it (a student is sharded with `fsdp: true` in "
                "`training`)",
            )
        elif model.sharded and model.device_map is not None:
            yield at, "is true, and `device_map` says too where the weights are; keep one of them"
        elif model.sharded and model.quantization is not None:
            yield at, "is true, and quantised weights cannot be cut into shards; write false, or remove `quantization`"
    if isinstance(stage, SftStage | DistillStage):
        yield from _check_engine(path, stage)


def _check_engine(path: KeyPath, stage: SftStage | DistillStage) -> Iterator[tuple[KeyPath, str]]:
    training = stage.training
    fsdp, deepspeed = training.get("fsdp"), training.get("deepspeed")
    if fsdp and deepspeed:
        yield (*path, "training"), "has both `fsdp` and `deepspeed`; keep one of them"
    engine = "fsdp" if fsdp else "deepspeed" if deepspeed else None
    spread = next((key for key, model in models_of(stage).items() if model.device_map is not None), None)
    if engine and spread:
        yield (
            (*path, "training", engine),
            f"shards over one process per device, and the `device_map` of {'.'.join(map(str, spread))} spreads over "
            "the devices of one process; keep one of them",
        )
    if fsdp and fsdp is not True:
        yield (
            (*path, "training", "fsdp"),
            f"is {shown(fsdp)}, and accepted are true and false; what FSDP 1 had there goes into `fsdp_config`",
        )
    quantised = next((k for k in ("student", "model") if getattr(getattr(stage, k, None), "quantization", None)), None)
    if fsdp and quantised:
        yield (
            (*path, "training", "fsdp"),
            f"cuts weights by rows, and the `quantization` of {quantised} packs them; keep one of them",
        )
    config = training.get("fsdp_config")
    if config is not None and not fsdp:
        yield (*path, "training", "fsdp_config"), "has no effect without `fsdp: true`; add that, or remove it"
    elif isinstance(config, str):
        yield (
            (*path, "training", "fsdp_config"),
            f"is {shown(config)}, and accepted is a mapping; write the file's keys here",
        )
    elif isinstance(config, Mapping):
        yield from _check_config((*path, "training", "fsdp_config"), config)


def _check_config(path: KeyPath, config: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    for key, value in config.items():
        name = str(key).removeprefix("fsdp_")
        if name == "version" and value != 2:
            yield (
                (*path, key),
                f"is {value!r}, whose flat parameters have no output head of their own; write 2, or remove it",
            )
        elif name == "auto_wrap_policy" and value not in _WRAPS:
            yield (*path, key), f"is {shown(value)}, and accepted are {accepted(_WRAPS)}"
        elif name in _OTHER_FSDP_KEYS:
            yield (*path, key), f"is not used here; {_OTHER_FSDP_KEYS[name]}"
        elif name not in _FSDP_KEYS:
            yield (
                (*path, key),
                f"is not a key of FSDP2{did_you_mean(name, _FSDP_KEYS)}; accepted are {accepted(_FSDP_KEYS)}",
            )


def needs_processes(stage: Stage) -> Iterator[str]:
    """Yields what of a stage cannot be done by one process alone."""
    if not isinstance(stage, SftStage | DistillStage):
        return
    if stage.training.get("fsdp"):
        yield (
            "training.fsdp: shards the student over several processes, and this is the only one; start them with "
            "torchrun or accelerate launch, or remove `fsdp`"
        )
    for key, model in models_of(stage).items():
        if model.sharded:
            yield (
                f"{'.'.join(map(str, key))}.sharded: is true, and this is the only process; start several with "
                "torchrun or accelerate launch, or remove it"
            )
