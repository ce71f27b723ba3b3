"""The `generate` stage: a model answers the prompts of a dataset, or writes texts from the begin token.

The result, `rows.jsonl`, is a dataset that later stages read as `stage:NAME`. Row r depends on the seed and
on r, not on the batch it was written in, so an interrupted stage goes on where it stopped and ends with the
same rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from preceptor.data.template import ChatTemplate, Message, choose_template
from preceptor.errors import InputError
from preceptor.evaluation.kept import Kept
from preceptor.evaluation.local_answers import load_writer
from preceptor.evaluation.measure import by_length
from preceptor.evaluation.progress import Progress
from preceptor.models.sampling import Sampled, row_uniforms, sample, stop_tokens
from preceptor.stages.datasets import split_for
from preceptor.system.files import sha256_json, write_atomic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preceptor.recipe import GenerateStage
    from preceptor.stages.context import StageContext

PARTIAL = "rows.partial.jsonl"


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
    model, tokenizer = load_writer(context.resolve_model(spec.model), announce=context.log)
    context_length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    prompts = _prompts(spec, context, tokenizer, context_length)
    stop = stop_tokens(model, tokenizer)
    # Same file only for the same rows: the batch size may change between attempts, these things may not.
    what = [spec.model_dump(mode="json", exclude={"batch_size"}), context.seed, len(prompts)]
    kept: Kept[int] = Kept(context.directory / PARTIAL, {"rows": sha256_json(what)}, _is_row)
    done = kept.results
    if done:
        context.log(f"{context.name}: goes on after {len(done):,} of {len(prompts):,} rows")
    progress = Progress(context.name, len(prompts), context.log, done=len(done))
    missing = [prompt for prompt in prompts if prompt.row not in done]
    for chosen in by_length([len(prompt.ids) for prompt in missing], spec.batch_size):
        batch = [missing[index] for index in chosen]
        sampled = sample(
            model,
            [prompt.ids for prompt in batch],
            [row_uniforms(context.seed, prompt.row, prompt.allowed) for prompt in batch],
            stop=stop,
            temperature=spec.temperature,
            top_p=spec.top_p,
            pad_token_id=tokenizer.pad_token_id,
        )
        kept.add((prompt.row, _row(prompt, result, tokenizer)) for prompt, result in zip(batch, sampled, strict=True))
        progress(len(batch), sum(len(result.tokens) for result in sampled))
    rows = [done[row] for row in sorted(done)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(context.directory / "rows.jsonl", text)
    kept.path.unlink(missing_ok=True)
    return {
        "rows": len(rows),
        "tokens": sum(row["tokens"] for row in rows),
        "finished": sum(row["finished"] for row in rows),
        "skipped_prompts": spec.rows - len(rows),
    }


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


def _is_row(key: Any, row: Any) -> bool:
    """Whether a line of the partial file holds what `_row` makes."""
    if type(key) is not int or not isinstance(row, dict):
        return False
    told = isinstance(row.get("text"), str) or isinstance(row.get("messages"), list)
    return told and isinstance(row.get("finished"), bool) and type(row.get("tokens")) is int


def _row(prompt: _Prompt, sampled: Sampled, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    text = tokenizer.decode(sampled.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    facts = {"finished": sampled.finished, "tokens": len(sampled.tokens)}
    if prompt.messages is None:
        return {"text": text, **facts}
    # The template writes the space before an answer; kept here it would be there twice.
    messages = [*prompt.messages, {"role": "assistant", "content": text.strip()}]
    return {"messages": messages, **facts, "origin": prompt.origin}
