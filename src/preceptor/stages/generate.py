"""The `generate` stage: a model answers the prompts of a dataset, or writes texts from the begin token.

The result, `rows.jsonl`, is a dataset that later stages read as `stage:NAME`. Row r depends on the seed and
on r, not on the batch it was written in, so an interrupted stage goes on where it stopped and ends with the
same rows.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from preceptor.data.template import ChatTemplate, Message, choose_template
from preceptor.errors import InputError
from preceptor.files import sha256_json, write_atomic
from preceptor.models.load import load_model
from preceptor.models.sampling import Sampled, check_can_sample, row_uniforms, sample
from preceptor.models.tokenizers import check_tokenizer_fits, load_tokenizer
from preceptor.stages.datasets import split_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preceptor.recipe import GenerateStage
    from preceptor.stages.context import StageContext

PARTIAL = "rows.partial.jsonl"
_REPORT_SECONDS = 10.0  # one progress line at most this often: readable in a pipe, and proof of life


@dataclass(frozen=True)
class _Prompt:
    """What row `row` continues: token ids, how many new tokens fit, and what goes into the row besides."""

    row: int
    ids: tuple[int, ...]
    allowed: int
    messages: tuple[Message, ...] | None = None
    origin: str | None = None


def execute(spec: GenerateStage, context: StageContext) -> dict[str, Any]:
    """Writes `rows.jsonl`, one object per row in the order of the prompts.

    From the begin token a row is `{"text", "finished", "tokens"}`; a prompt's is `{"messages", "finished",
    "tokens", "origin"}` with the answer as the last message and where the prompt came from. `finished` is
    false where `max_new_tokens` or the model's context ended the text. The begin token ends a text too:
    models trained on texts that are only separated by it never write an end token.

    Raises:
        InputError: whatever loading refuses, a recurrent model, no begin token, prompts without a conversation or
        all too long.
    """
    model_spec = context.resolve_model(spec.model)
    tokenizer = load_tokenizer(model_spec, announce=context.log)
    model = load_model(model_spec, role="teacher")
    check_tokenizer_fits(tokenizer, model)
    check_can_sample(model)
    if model_spec.device_map is None and torch.cuda.is_available():
        model = model.to("cuda")
    context_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    prompts = _prompts(spec, context, tokenizer, context_length)
    stop = _stop_tokens(model.generation_config.eos_token_id, tokenizer)
    # Same file only for the same rows: the batch size may change between attempts, these things may not.
    what = [spec.model_dump(mode="json", exclude={"batch_size"}), context.seed, len(prompts)]
    partial = context.directory / PARTIAL
    done = _resume(partial, {"rows": sha256_json(what)})
    if done:
        context.log(f"{context.name}: goes on after {len(done):,} of {len(prompts):,} rows")
    progress = _Progress(context, total=len(prompts), done=len(done))
    with partial.open("a", encoding="utf-8") as stream:
        for batch in _batches([prompt for prompt in prompts if prompt.row not in done], spec.batch_size):
            sampled = sample(
                model,
                [prompt.ids for prompt in batch],
                [row_uniforms(context.seed, prompt.row, prompt.allowed) for prompt in batch],
                stop=stop,
                temperature=spec.temperature,
                top_p=spec.top_p,
                pad_token_id=tokenizer.pad_token_id,
            )
            for prompt, result in zip(batch, sampled, strict=True):
                done[prompt.row] = _row(prompt, result, tokenizer)
                stream.write(json.dumps([prompt.row, done[prompt.row]], ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
            progress.add(len(batch), sum(len(result.tokens) for result in sampled))
    rows = [done[row] for row in sorted(done)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(context.directory / "rows.jsonl", text)
    partial.unlink()
    return {
        "rows": len(rows),
        "tokens": sum(row["tokens"] for row in rows),
        "finished": sum(row["finished"] for row in rows),
        "skipped_prompts": spec.rows - len(rows),
    }


class _Progress:
    """One line at most every `_REPORT_SECONDS`, and one at the end."""

    def __init__(self, context: StageContext, *, total: int, done: int) -> None:
        self.context, self.total, self.done = context, total, done
        self.rows = self.tokens = 0
        self.started = self.reported = time.monotonic()

    def add(self, rows: int, tokens: int) -> None:
        self.done, self.rows, self.tokens = self.done + rows, self.rows + rows, self.tokens + tokens
        now = time.monotonic()
        if now - self.reported < _REPORT_SECONDS and self.done < self.total:
            return
        self.reported = now
        seconds = max(now - self.started, 1e-9)
        left = (self.total - self.done) * seconds / self.rows
        self.context.log(
            f"{self.context.name}: {self.done:,} of {self.total:,} rows, {self.tokens / seconds:,.0f} "
            f"tokens/s, {left:.0f} s left"
        )


def _prompts(
    spec: GenerateStage,
    context: StageContext,
    tokenizer: PreTrainedTokenizerBase,
    context_length: int | None,
) -> list[_Prompt]:
    where = f"stages.{context.name}"
    if spec.prompts is None:
        begin = tokenizer.bos_token_id
        if begin is None:
            raise InputError(
                f"{where}: the tokenizer of {spec.model.path!r} has no begin token to write from; name a "
                "dataset as "
                "`prompts`"
            )
        allowed = min(spec.max_new_tokens, (context_length or spec.max_new_tokens + 1) - 1)
        return [_Prompt(row, (begin,), allowed) for row in range(spec.rows)]
    rows = split_for([spec.prompts], context, answers=False)[spec.prompts].train
    rows = [row for row in rows if row.prompt_messages]
    if not rows:
        raise InputError(
            f"{where}.prompts: no row of {spec.prompts} is a conversation with something to answer; name "
            "a dataset of "
            "conversations, or leave `prompts` out to write from the begin token"
        )
    if choose_template(tokenizer) == "default":
        context.log(f"{context.name}: the model has no chat template; the default one is used")
    template = ChatTemplate(tokenizer)
    prompts: list[_Prompt] = []
    for number in range(spec.rows):
        row = rows[number % len(rows)]  # more rows than prompts: further answers to the same ones
        text = template.render(row.prompt_messages, add_generation_prompt=True)
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        allowed = spec.max_new_tokens
        if context_length is not None:
            allowed = min(allowed, context_length - len(ids))
        if allowed > 0:
            prompts.append(_Prompt(number, ids, allowed, row.prompt_messages, row.origin.rsplit("/", 1)[-1]))
    if not prompts:
        raise InputError(
            f"{where}.prompts: every prompt of {spec.prompts} is longer than the model's context of "
            f"{context_length} "
            "tokens; give shorter prompts"
        )
    if len(prompts) < spec.rows:
        left_out = spec.rows - len(prompts)
        context.log(f"{context.name}: {left_out:,} prompts longer than {context_length} tokens are left out")
    return prompts


def _batches(prompts: list[_Prompt], size: int) -> Iterator[list[_Prompt]]:
    # Longest first: little padding, and a batch that does not fit into memory fails at once, not after an
    # hour.
    ordered = sorted(prompts, key=lambda prompt: (-len(prompt.ids), prompt.row))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def _stop_tokens(configured: int | list[int] | None, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    several = configured if isinstance(configured, list) else [configured]
    own = (tokenizer.eos_token_id, tokenizer.bos_token_id)
    return {token for token in (*several, *own) if token is not None}


def _row(prompt: _Prompt, sampled: Sampled, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    text = tokenizer.decode(sampled.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    facts = {"finished": sampled.finished, "tokens": len(sampled.tokens)}
    if prompt.messages is None:
        return {"text": text, **facts}
    # The template writes the space before an answer; kept here it would be there twice.
    messages = [*prompt.messages, {"role": "assistant", "content": text.strip()}]
    return {"messages": messages, **facts, "origin": prompt.origin}


def _resume(partial: Path, header: dict[str, str]) -> dict[int, dict[str, Any]]:
    """Rows an interrupted attempt wrote; a line it cut short is removed, another spec's file replaced."""
    lines = partial.read_bytes().split(b"\n")[:-1] if partial.exists() else []
    done: dict[int, dict[str, Any]] = {}
    good = [json.dumps(header)]
    try:
        if lines and json.loads(lines[0]) == header:
            for line in lines[1:]:
                row, content = json.loads(line)
                done[int(row)] = content
                good.append(line.decode())
    except ValueError:
        pass
    write_atomic(partial, "\n".join(good) + "\n")
    return done
