"""Log-likelihood of every choice of a question, its prompt run once for all of them.

The score of a choice is log p(choice | prompt) = Σ log p(token | prompt, tokens before it) over the choice's own
tokens, as the assistant's answer under the chat template and without the end-of-sequence token. Taking the choice with
the largest sum is what lm-evaluation-harness calls `acc`.

Choices of one question begin alike, with the prompt. That common beginning goes through the model once and its keys
and values are reused: for 27 intents of a few tokens each behind a prompt of fifty that is a seventh of the work.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from preceptor.data.chat import EncodedRow
from preceptor.kernels.linear_loss import linear_loss
from preceptor.models.calls import AttentionCall
from preceptor.models.sampling import check_can_sample
from preceptor.models.taps import forward_observed
from preceptor.objective import NextToken
from preceptor.objective.terms import HeadChunk
from preceptor.signals import Head

SEQUENCES_PER_ROW = 4
"""Choices scored together for each row of the batch size: behind a cached prompt a choice is a few tokens long."""


def choice_log_likelihoods(
    model: PreTrainedModel,
    questions: Sequence[Sequence[EncodedRow]],
    *,
    pad_token_id: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda questions: None,
) -> list[list[float]]:
    """Σ log p of each choice's targets in nats, for each question in order.

    Args:
        model: in evaluation mode.
        questions: per question its choices as whole rows (prompt and choice); the targets are the choice's tokens.
        pad_token_id: fills up, masked.
        batch_size: changes the time and, beyond rounding, nothing else.
        advance: told how many questions a finished batch held.

    Raises:
        InputError: a model with a recurrent state, whose prompt cannot be reused.
    """
    check_can_sample(model)
    found: list[list[float]] = [[] for _ in questions]
    shared = [_shared(choices) for choices in questions]
    for chosen in _batches(questions, shared, SEQUENCES_PER_ROW * batch_size):
        values = _score(model, [questions[i] for i in chosen], [shared[i] for i in chosen], pad_token_id)
        for i in chosen:
            found[i] = [float(next(values)) for _ in questions[i]]
        advance(len(chosen))
    return found


def _shared(choices: Sequence[EncodedRow]) -> int:
    """How many first tokens all choices share, short of the position that predicts a first target."""
    limit = min(int(np.flatnonzero(choice.is_target)[0]) for choice in choices) - 1
    first = choices[0].input_ids[:limit]
    for choice in choices[1:]:
        differs = np.flatnonzero(choice.input_ids[: len(first)] != first)
        first = first[: differs[0]] if len(differs) else first
    return len(first)


def _batches(questions: Sequence[Sequence[EncodedRow]], shared: Sequence[int], most: int) -> Iterator[list[int]]:
    """Questions with prompts of similar length, longest first, at most `most` choices at once."""
    batch: list[int] = []
    held = 0
    for i in sorted(range(len(questions)), key=lambda i: (-shared[i], i)):
        if batch and held + len(questions[i]) > most:
            yield batch
            batch, held = [], 0
        batch.append(i)
        held += len(questions[i])
    if batch:
        yield batch


@torch.no_grad()
def _score(
    model: PreTrainedModel, questions: Sequence[Sequence[EncodedRow]], shared: Sequence[int], pad: int
) -> Iterator[float]:
    """One sum per choice, question after question."""
    device = model.get_input_embeddings().weight.device
    numbered = "position_ids" in inspect.signature(model.forward).parameters
    cache = DynamicCache(config=model.config)
    # Prompts end together, so that the choices behind them begin together.
    width = max(shared)
    prompts = [choices[0].input_ids[:length] for choices, length in zip(questions, shared, strict=True)]
    ids_BP, mask_BP = _padded(prompts, width, pad, left=True)
    if width:
        inputs = _inputs(ids_BP, mask_BP, (mask_BP.cumsum(-1) - 1).clamp(min=0), numbered, device)
        forward_observed(model, model, {**inputs, "past_key_values": cache}, _LabelLogProbs())
    row_N = [b for b, choices in enumerate(questions) for _ in choices]
    rest = [choice.input_ids[n:] for choices, n in zip(questions, shared, strict=True) for choice in choices]
    target = [choice.is_target[n:] for choices, n in zip(questions, shared, strict=True) for choice in choices]
    index_N = torch.tensor(row_N, device=device)
    if width:
        cache.batch_select_indices(index_N)
    length = max(len(ids) for ids in rest)
    ids_NS, mask_NS = _padded(rest, length, pad, left=False)
    # Padding repeats the last number, lest a model with a table of positions be asked beyond it.
    position_NS = torch.tensor(shared)[row_N][:, None] + (mask_NS.cumsum(-1) - 1)
    sequence = np.concatenate([np.full(int(mask.sum()), n) for n, mask in enumerate(target)])
    place = np.concatenate([np.flatnonzero(mask) for mask in target])
    label = np.concatenate([ids[mask] for ids, mask in zip(rest, target, strict=True)])
    observer = _LabelLogProbs(
        torch.from_numpy(sequence * length + place - 1).to(device), torch.from_numpy(label.astype(np.int64)).to(device)
    )
    inputs = _inputs(ids_NS, torch.cat((mask_BP[row_N], mask_NS), 1), position_NS, numbered, device)
    forward_observed(model, model, {**inputs, "past_key_values": cache}, observer)
    assert observer.value_T is not None
    sums_N = np.bincount(sequence, weights=observer.value_T.double().cpu().numpy(), minlength=len(rest))
    return iter(sums_N.tolist())


def _padded(rows: Sequence[Any], width: int, pad: int, *, left: bool) -> tuple[Tensor, Tensor]:
    """int64 [B, width] token ids and a mask, 1 on real tokens."""
    ids_BS = torch.full((len(rows), width), pad)
    mask_BS = torch.zeros(len(rows), width, dtype=torch.int64)
    for b, row in enumerate(rows):
        span = slice(width - len(row), width) if left else slice(0, len(row))
        ids_BS[b, span] = torch.from_numpy(np.asarray(row, dtype=np.int64))
        mask_BS[b, span] = 1
    return ids_BS, mask_BS


def _inputs(ids: Tensor, mask: Tensor, positions: Tensor, numbered: bool, device: torch.device) -> dict[str, Any]:
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "use_cache": True}
    return {**inputs, "position_ids": positions.to(device)} if numbered else inputs


class _LabelLogProbs:
    """Takes log p(label) at chosen positions inside the output head, and lets no logits be made elsewhere."""

    def __init__(self, flat_T: Tensor | None = None, label_T: Tensor | None = None) -> None:
        self._flat_T, self._label_T = flat_T, label_T
        self._term = NextToken()
        self.value_T: Tensor | None = None

    def at_attention(self, call: AttentionCall, output: Tensor) -> Tensor:
        return output

    def at_head(self, head: Head, hidden_BSD: Tensor) -> Tensor:
        if self._flat_T is not None and self._label_T is not None:
            label_T = self._label_T

            def chunk(logits_nV: Tensor, rows: slice, wants_grad: bool) -> tuple[Tensor, None]:
                return -self._term.evaluate(HeadChunk(logits_nV, label_T[rows]), False)[0][None], None

            self.value_T = linear_loss(hidden_BSD.flatten(0, 1)[self._flat_T], head, chunk, 1)[1][0]
        return hidden_BSD[..., :1]

    def result(self, output: Tensor) -> dict[str, Tensor]:
        return {}
