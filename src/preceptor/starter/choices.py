"""The settings a first recipe begins with, each from what was found, with the words that say why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preceptor.starter.data import DataFacts
from preceptor.starter.machine import Machine, size
from preceptor.starter.models import ModelFacts

_TRAINED = 16
"""Bytes of a parameter that is trained whole: weight, gradient and Adam's two moments, all fp32."""
_FROZEN = 4
"""Bytes of a student's parameter beneath an adapter: fp32."""
_PACKED = {"4bit": 0.56, "8bit": 1.02}
"""Bytes of a quantised parameter with its scales."""
_LARGE = 500_000_000
"""Parameters from which a step on several rows keeps more activations than weights."""
_STEPS = 100
"""Steps that an epoch should have at least, for a schedule to mean something."""


@dataclass(frozen=True)
class Length:
    """Tokens per row, and why."""

    tokens: int
    why: str


def length(most: int | None, student: ModelFacts, teacher: ModelFacts) -> Length:
    """Tokens per row: what most rows have, in steps of 64, and no more than both models were made for."""
    limits = [each.positions for each in (student, teacher) if each.positions is not None]
    limit = min(limits, default=None)
    if most is None:
        return Length(min(limit or 2048, 2048), "tokens per row; others are cut")
    wanted = -(-most // 64) * 64
    if limit is not None and wanted > limit:
        return Length(limit, "tokens per row, the most the models were made for")
    return Length(max(wanted, 2), "tokens; 99 % of the rows are shorter")


def batch(student: ModelFacts) -> int:
    """Rows in one pass of a device."""
    if student.parameters is None:
        return 1
    return 8 if student.parameters < _LARGE else 1


def rows_per_step(data: Sequence[DataFacts], per_device: int) -> int:
    """Rows of an optimiser step: a power of two up to 64 with which an epoch still has some steps."""
    known = [each.trained for each in data]
    if any(rows is None for rows in known):
        return max(64, per_device)
    total = sum(rows or 0 for rows in known)
    chosen = 64
    while chosen > 8 and total < chosen * _STEPS:
        chosen //= 2
    return max(chosen, per_device)


def shares(data: Sequence[DataFacts]) -> dict[str, float]:
    """Share of each dataset in stage 2: by rows, and of all domains together from a tenth to a half."""
    domain = [each for each in data if each.role == "domain"]
    general = [each for each in data if each.role == "general"]
    counts = [each.trained for each in data]
    if any(rows is None for rows in counts):
        whole = 0.1
    else:
        whole = sum(each.trained or 0 for each in domain) / sum(rows or 0 for rows in counts)
    whole = round(min(max(whole, 0.1, 0.02 * len(domain)), 0.5), 2)
    return parted(domain, whole) | parted(general, round(1 - whole, 2))


def parted(data: Sequence[DataFacts], whole: float) -> dict[str, float]:
    """`whole` parted by numbers of rows (equally where one is unknown), in hundredths, each at least one."""
    known = [max(each.trained or 0, 1) for each in data]
    if any(each.trained is None for each in data):
        known = [1] * len(data)
    hundredths = [max(1, int(100 * whole * rows / sum(known))) for rows in known]
    hundredths[known.index(max(known))] += round(100 * whole) - sum(hundredths)
    return {each.name: part / 100 for each, part in zip(data, hundredths, strict=True)}


@dataclass(frozen=True)
class Memory:
    """What the weights of stage 1 take at least, in bytes; None where a model is on the Hub."""

    student: float | None
    teacher: float | None
    machine: Machine

    @property
    def least(self) -> float | None:
        """Of both models together; activations come on top."""
        return None if self.student is None or self.teacher is None else self.student + self.teacher

    @property
    def too_little(self) -> bool:
        """Whether not even the weights fit."""
        return self.least is not None and self.least > self.machine.memory

    @property
    def words(self) -> str:
        """What takes how much."""
        if self.student is None or self.teacher is None or self.least is None:
            return "sizes are unknown until `preceptor plan` has looked at the Hub"
        teacher = f", teacher {size(self.teacher)}" if self.teacher else ""
        return (
            f"at least {size(self.least)} (student {size(self.student)}{teacher}) plus activations; "
            f"{self.machine.words}"
        )


def memory(
    student: ModelFacts, teacher: ModelFacts, machine: Machine, *, lora: bool, quantize: str | None, store: bool
) -> Memory:
    """What stage 1 takes at least. With a store the teacher is not there while the student learns."""
    learned = None if student.parameters is None else student.parameters * float(_FROZEN if lora else _TRAINED)
    if store:
        return Memory(learned, 0.0, machine)
    if teacher.parameters is None or quantize is None:
        taught = None if teacher.bytes is None else float(teacher.bytes)
    else:
        taught = teacher.parameters * _PACKED[quantize]
    return Memory(learned, taught, machine)
