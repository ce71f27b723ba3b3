"""From rows to token ids with the targets marked: the one place that decides which tokens are learned.

A token is a target if the assistant wrote it, the end-of-sequence token that closes an answer included; of
plain text every token is. The first token of a row is never a target: nothing predicts it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from preceptor.data.rows import Row
from preceptor.data.template import (
    DEFAULT_TEMPLATE,
    ChatTemplate,
    Refused,
    Rendered,
    choose_template,
    eos_token,
)
from preceptor.errors import InputError

__all__ = [
    "DEFAULT_TEMPLATE",
    "Dropped",
    "EncodedRow",
    "choose_template",
    "encode_row",
    "encode_rows",
    "render_sample",
]

Targets = Literal["assistant", "all"]
CHUNK = 512  # rows given to the tokenizer at once: enough for its threads, little to hold


@dataclass(frozen=True, eq=False)
class EncodedRow:
    """A row as tokens.

    `input_ids` is int32 [S]; `is_target` bool [S]: token i is itself a target, and token 0 never is.

    `notes` says what was left out of it ("truncated", "earlier turns are no targets"). `own_route` is set where a
    column of the data gives each row its route.
    """

    dataset: str
    input_ids: npt.NDArray[np.int32]
    is_target: npt.NDArray[np.bool_]
    origin: str
    notes: tuple[str, ...] = field(default=())
    own_route: str | None = None

    @property
    def route(self) -> str:
        """Which teacher it follows and under which name it is counted: its dataset's, unless a column says another."""
        return self.dataset if self.own_route is None else self.own_route

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def target_count(self) -> int:
        """How many target tokens it has."""
        return int(np.count_nonzero(self.is_target))


@dataclass(frozen=True)
class Dropped:
    """A row that cannot be used, and why, in words that can be counted."""

    reason: str


def encode_row(
    row: Row, tokenizer: PreTrainedTokenizerBase, *, max_length: int, targets: Targets | None = None
) -> EncodedRow | Dropped:
    """Encodes one row; see `encode_rows`."""
    return next(encode_rows([row], tokenizer, max_length=max_length, targets=targets))


def encode_rows(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    targets: Targets | None = None,
) -> Iterator[EncodedRow | Dropped]:
    """Encodes rows in order, one result for each.

    Conversations go through the tokenizer's chat template, which alone writes the special tokens (so no
    second beginning-of-sequence token appears); where it ends an answer without the end-of-sequence token,
    that token is added at the end of the row. Prompt/completion rows are conversations of one turn. Plain
    text is BOS + text + EOS, without BOS where the tokenizer has none.

    Args:
        rows: conversations, plain texts, or both.
        tokenizer: a fast one; `choose_template` gives it a template where it has none.
        max_length: tokens; what is longer is cut at the end, and dropped if no target remains.
        targets: "assistant" or "all"; None means "assistant" for conversations and "all" for plain text.

    Raises:
        InputError: no chat template, no end-of-sequence token, or no character offsets (not a fast
            tokenizer).
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"tokenizer {tokenizer.name_or_path!r}: it gives no character offsets, which the loss mask "
            f"needs; "
            "use one with a tokenizer.json"
        )
    template: ChatTemplate | None = None
    for first in range(0, len(rows), CHUNK):
        chunk = rows[first : first + CHUNK]
        if template is None and any(row.messages is not None for row in chunk):
            template = ChatTemplate(tokenizer)
        rendered = [_render(row, template, targets) for row in chunk]
        texts = [r.text for r in rendered if isinstance(r, Rendered)]
        encodings = iter(_encodings(texts, tokenizer))
        for row, result in zip(chunk, rendered, strict=True):
            if isinstance(result, Refused):
                yield Dropped(result.reason)
                continue
            encoding = next(encodings)
            input_ids = np.asarray(encoding.ids, dtype=np.int32)
            is_target = _tokens_in(result, encoding)
            if row.messages is None:
                input_ids, is_target = _closed(input_ids, is_target, tokenizer)
            yield _finished(row, input_ids, is_target, max_length, result.turns_left_out)


def _render(row: Row, template: ChatTemplate | None, targets: Targets | None) -> Rendered | Refused:
    if row.messages is not None:
        assert template is not None
        return template.targets(row.messages, all_text=targets == "all")
    assert row.text is not None
    if targets == "assistant" and not row.given:
        return Refused("no assistant turn")
    if not row.text[row.given :].strip():
        return Refused("the text is empty" if not row.given else "the completion is empty")
    return Rendered(row.text, ((0 if targets == "all" else row.given, len(row.text)),))


def _encodings(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Sequence[Encoding]:
    if not texts:
        return []
    batch = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no word about rows over the model's length: they are cut below, and counted
    )
    encodings: Sequence[Encoding] | None = batch.encodings
    assert encodings is not None
    return encodings


def _tokens_in(rendered: Rendered, encoding: Encoding) -> npt.NDArray[np.bool_]:
    """Which tokens [S] lie in the target characters.

    Character offsets may be trimmed of whitespace (byte-level tokenizers) or empty (a prepended word mark),
    and the bytes of one character share theirs; so a token is taken to begin where the text before it ends. A
    token over a boundary is a target only if what it holds on the other side is whitespace.
    """
    text, length = rendered.text, len(encoding)
    is_target = np.zeros(length, dtype=np.bool_)

    # Offsets are asked for one by one: a list of them all takes half as long as the tokenization.
    def characters(token: int) -> tuple[int, int]:
        offsets = encoding.token_to_chars(token)
        assert offsets is not None  # only a token added by a post-processor has none
        return offsets

    def ends_at(token: int) -> int:
        return characters(token)[1]

    for start, end in rendered.spans:
        # The first token that may reach into the span; ends never decrease.
        token = bisect_left(range(length), start, key=ends_at)
        low = ends_at(token - 1) if token else 0
        while token < length:
            first, high = characters(token)
            low = min(low, first)
            if low >= end:
                break
            if low >= start and high <= end:
                is_target[token] = True
            elif high > start:
                inside, outside = text[max(low, start) : min(high, end)], text[low:start] + text[end:high]
                is_target[token] = bool(inside.strip()) and not outside.strip()
            low, token = max(low, high), token + 1
    return is_target


def _closed(
    input_ids: npt.NDArray[np.int32], is_target: npt.NDArray[np.bool_], tokenizer: PreTrainedTokenizerBase
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Plain text between BOS and EOS, neither of them twice."""
    eos_token(tokenizer)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    before = [bos] if bos is not None and (not len(input_ids) or input_ids[0] != bos) else []
    after = [eos] if not len(input_ids) or input_ids[-1] != eos else []
    ids = np.concatenate((before, input_ids, after)).astype(np.int32)
    mask = np.concatenate(([False] * len(before), is_target, [True] * len(after))).astype(np.bool_)
    return ids, mask


def _finished(
    row: Row,
    input_ids: npt.NDArray[np.int32],
    is_target: npt.NDArray[np.bool_],
    max_length: int,
    turns_left_out: int,
) -> EncodedRow | Dropped:
    notes: list[str] = []
    if turns_left_out:
        notes.append("earlier turns are no targets")
    if len(input_ids) > max_length:
        notes.append("truncated")
        input_ids, is_target = input_ids[:max_length].copy(), is_target[:max_length].copy()
    is_target[:1] = False
    if not is_target.any():
        where = f"within {max_length} tokens" if "truncated" in notes else "in the row"
        return Dropped(f"no target {where}")
    return EncodedRow(row.dataset, input_ids, is_target, row.origin, tuple(notes))


def render_sample(encoded: EncodedRow, tokenizer: PreTrainedTokenizerBase) -> str:
    """The decoded row with each run of targets between ⟦ and ⟧, for a person to check the mask.

    Tokens are decoded in runs, so that a character of several tokens reads well.
    """
    pieces: list[str] = []
    edges = np.flatnonzero(np.diff(encoded.is_target)) + 1
    bounds = [0, *edges.tolist(), len(encoded)]
    for first, last in pairwise(bounds):
        # The text through the run less the text before it: decoders drop the space of a first word.
        before = _decoded(tokenizer, encoded.input_ids[:first])
        through = _decoded(tokenizer, encoded.input_ids[:last])
        text = (
            through[len(before) :] if through.startswith(before) else _decoded(tokenizer, encoded.input_ids[first:last])
        )
        pieces.append(f"⟦{text}⟧" if encoded.is_target[first] else text)
    return "".join(pieces)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: npt.NDArray[np.int32]) -> str:
    return str(tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))
