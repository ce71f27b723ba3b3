"""From the recipe's words to the objects of a training: arguments, adapter, objective terms."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import TrainingArguments

from preceptor.distributed import world_size
from preceptor.errors import InputError, did_you_mean, shown
from preceptor.models.compiled import compile_options
from preceptor.objective import Attention, Logits, NextToken, RouterBalance, Term
from preceptor.recipe import DistillStage, LogitsSpec, LoraSpec, NextTokenSpec, RouterBalanceSpec, SftStage
from preceptor.recipe.training import NEWER_NAMES
from preceptor.stages.optimizers import check_optimizer
from preceptor.training.trackers import check_trackers

if TYPE_CHECKING:
    from preceptor.objective.attention import LayerPolicy

# What differs from transformers' own defaults, and may be set in a recipe's `training:` block all the same.
DEFAULTS = {"logging_steps": 10, "save_total_limit": 2, "disable_tqdm": True, "report_to": "none"}


def check_training(training: dict[str, Any]) -> None:
    """Raises InputError for keys that transformers.TrainingArguments does not know, and for values it refuses."""
    known = TrainingArguments.__dataclass_fields__
    for key in training:
        if key not in known and key not in NEWER_NAMES.values():
            raise InputError(
                f"training.{key}: is not a key of transformers.TrainingArguments{did_you_mean(key, known)}; remove it"
            )
    arguments = training_arguments(training, Path("unused"), seed=0, accumulation=1)
    check_trackers(arguments.report_to)
    compile_options(arguments)
    check_optimizer(arguments)


def training_arguments(training: dict[str, Any], directory: Path, *, seed: int, accumulation: int) -> TrainingArguments:
    """The stage's TrainingArguments: our defaults, then the recipe's `training:` block, then what is ours to set.

    Raises:
        InputError: when transformers refuses a value.
    """
    owned = {
        "output_dir": str(directory),
        "seed": seed,
        "data_seed": seed,
        "gradient_accumulation_steps": accumulation,
        "remove_unused_columns": False,
    }
    here = {
        # Without a device to copy to, torch warns that pinning does nothing.
        "dataloader_pin_memory": torch.cuda.is_available(),
        # Unless told so, accelerate takes each of several processes without accelerators for the only one.
        "use_cpu": world_size() > 1 and not torch.accelerator.is_available(),
    }
    if training.get("deepspeed") and find_spec("deepspeed") is None:
        raise InputError(
            "training.deepspeed: needs the package deepspeed, which is not installed; install it, or shard with "
            "`fsdp: true`"
        )
    try:
        arguments = TrainingArguments(**_named({**DEFAULTS, **here, **training, **owned}))
    except (ValueError, TypeError, ImportError) as error:
        said = str(error).strip().split("\n")[0]
        raise InputError(
            f"training: transformers.TrainingArguments refuses {shown(training, 120)}: {said}; change that value"
        ) from error
    written = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "no"
    if arguments.mixed_precision != written:
        raise InputError(
            f"training: the launcher asks for {arguments.mixed_precision} (ACCELERATE_MIXED_PRECISION), which the "
            f"recipe does not; write `{arguments.mixed_precision}: true` into `training`, or start the processes with "
            "--mixed_precision no"
        )
    return arguments


def _named(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings under the newest names that this version of transformers knows; of older ones it would warn."""
    known = TrainingArguments.__dataclass_fields__
    newest = {older: newer for newer, older in NEWER_NAMES.items() if newer in known}
    return {newest.get(key, key): value for key, value in settings.items()}


def add_lora(student: Any, lora: LoraSpec) -> Any:
    """`student` with a fresh adapter (arXiv 2106.09685); the base is frozen.

    Raises:
        InputError: when PEFT refuses the target modules.
    """
    from peft import get_peft_model

    try:
        return get_peft_model(student, lora_config(lora))
    except ValueError as error:
        raise InputError(f"lora: PEFT refuses {shown(lora.target_modules)}: {str(error).splitlines()[0]}") from error


def lora_config(lora: LoraSpec) -> Any:
    """The PEFT config of a recipe's `lora:`."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=2 * lora.r if lora.alpha is None else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=lora.modules_to_save,
    )


def build_terms(spec: SftStage | DistillStage) -> list[Term]:
    """The objective's terms as the recipe gives them."""
    terms: list[Term] = []
    for term in spec.objective:
        if isinstance(term, RouterBalanceSpec):
            terms.append(RouterBalance(term.weight))
            continue
        routes = None if term.routes is None else tuple(term.routes)
        if isinstance(term, NextTokenSpec):
            terms.append(NextToken(term.weight, routes))
        elif isinstance(term, LogitsSpec):
            terms.append(
                Logits(term.weight, routes, term.divergence, term.temperature, beta=term.beta, alpha=term.alpha)
            )
        else:
            layers = cast("LayerPolicy | tuple[tuple[int, int], ...]", term.layers)
            terms.append(Attention(term.weight, routes, layers, term.heads, term.calibration_rows))
    return terms
