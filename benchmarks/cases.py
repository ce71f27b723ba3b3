"""The training steps that `step.py` measures: what each one computes, and nothing about measuring.

All run on one shape: a Mistral-architecture teacher and student of equal size with random weights, and
rows of which the second half is the response. A step is one forward and one backward pass over one batch;
the optimiser is left out, since it costs every case the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

Step = Callable[[], None]

IGNORED = -100  # transformers' label for positions without a loss


@dataclass(frozen=True)
class Shape:
    """Sizes of the models and of the batch; S and B are tokens per row and rows."""

    S: int
    B: int = 2
    vocabulary: int = 32_000
    layers: int = 4
    width: int = 256
    intermediate: int = 1024
    query_heads: int = 8
    key_value_heads: int = 8

    def model(self, seed: int) -> MistralForCausalLM:
        """A model with random weights, fp32, whose attention is transformers' default (sdpa)."""
        torch.manual_seed(seed)
        config = MistralConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.query_heads,
            num_key_value_heads=self.key_value_heads,
            max_position_embeddings=max(4096, self.S),
            sliding_window=None,
            attn_implementation="sdpa",
        )
        return MistralForCausalLM(config)

    def student(self) -> MistralForCausalLM:
        """The model that learns."""
        return self.model(1).train()

    def teacher(self) -> MistralForCausalLM:
        """The frozen model; another seed, so that every KL is far from zero."""
        return self.model(2).eval().requires_grad_(False)

    def tokens(self) -> tuple[Tensor, Tensor]:
        """input_ids int64 [B, S], and labels with the first half of each row ignored."""
        torch.manual_seed(0)
        input_ids = torch.randint(self.vocabulary, (self.B, self.S))
        labels = input_ids.clone()
        labels[:, : self.S // 2] = IGNORED
        return input_ids, labels


def teacher_forward(shape: Shape) -> Step:
    """The teacher's last hidden states: the least that any distillation needs.

    Its output head is left out on purpose: with it the reference would be slower and every ratio look better.
    """
    teacher = shape.teacher()
    input_ids, _ = shape.tokens()

    @torch.no_grad()
    def step() -> None:
        teacher.model(input_ids=input_ids, use_cache=False)

    return step


def sft(shape: Shape) -> Step:
    """Plain supervised fine-tuning as transformers' Trainer does it: labels in, the model's own loss out."""
    student = shape.student()
    input_ids, labels = shape.tokens()
    attention_mask = torch.ones_like(input_ids)

    def step() -> None:
        student(input_ids=input_ids, attention_mask=attention_mask, labels=labels, use_cache=False).loss.backward()
        student.zero_grad()

    return step


def ours(shape: Shape, teacher: Any, terms: list[Any]) -> Step:
    """One forward and backward pass of our terms, the teacher's signal included."""
    from preceptor.objective import Objective
    from preceptor.signals import TokenBatch

    student = shape.student()
    objective = Objective(terms)
    objective.prepare(student, teacher)
    input_ids, labels = shape.tokens()
    target_mask = torch.zeros_like(input_ids, dtype=torch.bool)
    target_mask[:, :-1] = labels[:, 1:] != IGNORED

    def step() -> None:
        # Made anew each time, as a collator would: what a batch derives from its masks is part of the step.
        batch = TokenBatch(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            position_ids=torch.arange(shape.S).expand(shape.B, -1),
            segment_ids=torch.zeros_like(input_ids),
            target_mask=target_mask,
            routes=torch.zeros(shape.B, dtype=torch.int64),
        )
        with objective.listening():
            sums = objective(student, batch, teacher(batch, objective.needs))
            (sums.loss / target_mask.sum()).backward()
        student.zero_grad()

    return step


def prediction(shape: Shape) -> Step:
    """Our logit term, forward KL, teacher included."""
    from preceptor.objective import Logits
    from preceptor.teachers import ModelTeacher

    return ours(shape, ModelTeacher(shape.teacher()), [Logits()])


def prediction_attention(shape: Shape) -> Step:
    """Our logit and attention terms, teacher included."""
    from preceptor.objective import Attention, Logits
    from preceptor.teachers import ModelTeacher

    return ours(shape, ModelTeacher(shape.teacher()), [Logits(), Attention()])


def trl_dense(shape: Shape) -> Step:
    """TRL's GKD loss function on the full logits of both models, beta=0 (forward KL), teacher included.

    Raises:
        ImportError: TRL is not installed, or this version keeps the function elsewhere.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    student, teacher = shape.student(), shape.teacher()
    input_ids, labels = shape.tokens()
    attention_mask = torch.ones_like(input_ids)

    def step() -> None:
        logits_BSV = student(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        with torch.no_grad():
            teacher_BSV = teacher(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        # The trainer drops the prompt before it calls the function, and so do we.
        first = shape.S // 2 - 1
        loss = GKDTrainer.generalized_jsd_loss(
            student_logits=logits_BSV[:, first:-1],
            teacher_logits=teacher_BSV[:, first:-1],
            labels=labels[:, first + 1 :],
            beta=0.0,
        )
        loss.backward()
        student.zero_grad()

    return step


def paper_dense(shape: Shape) -> Step:
    """Both losses from whole tensors: full logits, and the maps of all layers of both models kept at once.

    Eager attention, since no other implementation returns maps. The label shift is the correct one.
    """
    student, teacher = shape.student(), shape.teacher()
    for model in (student, teacher):
        model.set_attn_implementation("eager")
    input_ids, labels = shape.tokens()
    target_BS = F.pad(labels[:, 1:] != IGNORED, (0, 1))

    def kl_BS(teacher_log: Tensor, student_log: Tensor) -> Tensor:
        return F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(-1)

    def step() -> None:
        inputs = {"input_ids": input_ids, "use_cache": False, "output_attentions": True}
        taught = student(**inputs)
        with torch.no_grad():
            teaching = teacher(**inputs)
        kl = kl_BS(teaching.logits.log_softmax(-1), taught.logits.log_softmax(-1))
        loss = kl[target_BS].mean()
        for teacher_map, student_map in zip(teaching.attentions, taught.attentions, strict=True):
            # The smallest number fp32 knows keeps masked keys, which have probability 0, out of log(0).
            tiny = torch.finfo(teacher_map.dtype).tiny
            kl = kl_BS(teacher_map.clamp(min=tiny).log(), student_map.clamp(min=tiny).log())
            loss = loss + kl.mean(1)[target_BS].mean() / shape.layers
        loss.backward()
        student.zero_grad()

    return step


CASES: dict[str, Callable[[Shape], Step]] = {
    "teacher_forward": teacher_forward,
    "sft": sft,
    "prediction": prediction,
    "prediction_attention": prediction_attention,
    "trl_dense": trl_dense,
    "paper_dense": paper_dense,
}
