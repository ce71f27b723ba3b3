"""What makes a step smaller: changes of a setup, each tried by simulating the step with it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from preceptor.estimate.setups import LiveTeacher, Setup, StoredSetup
from preceptor.objective import Attention
from preceptor.recipe import LoraSpec

Change = Callable[[Setup], Setup]


@dataclass(frozen=True)
class Tried:
    """A change in the recipe's words, and the bytes that are needed with it."""

    change: str
    needed: int


def alternatives(setup: Setup) -> Iterator[tuple[str, Change]]:
    """Changes that could help, in the order in which they cost least of what is learned."""
    if any(base.quantization is None and base.packed_bytes is None for base in setup.bases.values()):
        yield "`quantization: {load_in_4bit: true}` for the teacher", _quantized
    if not setup.arguments.gradient_checkpointing:
        yield "`gradient_checkpointing: true` in training", _checkpointed
    if setup.lora is None and "adamw" in _optimizer(setup) and "8bit" not in _optimizer(setup):
        yield "`optim: adamw_bnb_8bit` in training", _small_states
    if len(setup.batch) > 1:
        yield f"`per_device_train_batch_size: {len(setup.batch) // 2}` in training", _halved
    live = any(isinstance(teacher, LiveTeacher) for teacher in setup.teachers.values())
    if live and not any(isinstance(term, Attention) for term in setup.terms()):
        yield "a `store` stage for the teacher", _stored
    if setup.lora is None:
        yield "`lora: {r: 16}`", _adapted


def try_all(
    setup: Setup, needs: Callable[[Setup], int], needed: int, available: int, *, seconds: float
) -> tuple[list[Tried], Tried | None, list[str]]:
    """Each change by itself, then as many together as it takes.

    Args:
        setup: needs `needed` bytes, more than the `available` ones.
        needs: the bytes that a setup needs.
        seconds: of this process's work, after which nothing more is tried.

    Returns:
        What helps, most saving first; the first of `alternatives` that fit together, or all of them, None where one
        fits alone; and the changes for which there was no time.
    """
    limit = time.process_time() + seconds
    tried: list[Tried] = []
    changes = dict(alternatives(setup))
    left = []
    for name, change in changes.items():
        if time.process_time() > limit:
            left.append(name)
            continue
        found = needs(change(setup))
        if found < needed:
            tried.append(Tried(name, found))
    by_saving = sorted(tried, key=lambda each: each.needed)
    if any(each.needed <= available for each in tried):
        return by_saving, None, left
    best = None
    for count in range(2, len(tried) + 1):
        chosen = tried[:count]
        # Savings nearly add up: what they promise together is worth a simulation only if it is enough.
        promised = needed - sum(needed - each.needed for each in chosen)
        if (promised > available and count < len(tried)) or time.process_time() > limit:
            continue
        together = setup
        for each in chosen:
            together = changes[each.change](together)
        best = Tried(" and ".join(each.change for each in chosen), needs(together))
        if best.needed <= available:
            break
    return by_saving, best, left


def _optimizer(setup: Setup) -> str:
    return str(getattr(setup.arguments.optim, "value", setup.arguments.optim))


def _quantized(setup: Setup) -> Setup:
    given = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    bases = {
        key: base
        if base.quantization is not None or base.packed_bytes is not None
        else replace(base, quantization=given)
        for key, base in setup.bases.items()
    }
    return replace(setup, bases=bases)


def _checkpointed(setup: Setup) -> Setup:
    arguments = copy.copy(setup.arguments)
    arguments.gradient_checkpointing = True
    return replace(setup, arguments=arguments)


def _small_states(setup: Setup) -> Setup:
    arguments = copy.copy(setup.arguments)
    arguments.optim = "adamw_bnb_8bit"
    return replace(setup, arguments=arguments)


def _halved(setup: Setup) -> Setup:
    fewer = len(setup.batch) // 2
    return replace(setup, batch=setup.batch[:fewer], accumulation=setup.accumulation * 2)


def _stored(setup: Setup) -> Setup:
    vocabulary = setup.vocabulary or int(setup.student.config.vocab_size)
    teachers = {
        key: teacher if isinstance(teacher, StoredSetup) else StoredSetup("sample", vocabulary)
        for key, teacher in setup.teachers.items()
    }
    return replace(setup, teachers=teachers, bases={})


def _adapted(setup: Setup) -> Setup:
    return replace(setup, lora=LoraSpec(r=16))
