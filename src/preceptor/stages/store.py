"""The `store` stage: a teacher is run once on all rows of datasets, and its predictions are kept.

Batches are parted among the processes, each of which writes shards of its own; a stopped stage goes on after the last
whole shard, with as many processes as there are then. What is kept of a row does not depend on any of this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from preceptor.distributed import from_main, is_main, rank, to_main, world_size
from preceptor.errors import InputError
from preceptor.evaluation.endpoint_mask import mask
from preceptor.evaluation.measure import by_length
from preceptor.evaluation.progress import Progress
from preceptor.models.fingerprint import model_facts
from preceptor.models.load import load_model
from preceptor.models.tokenizers import check_tokenizer_fits, template_facts, tokenizer_facts
from preceptor.recipe import EndpointSpec, ModelSpec
from preceptor.recipe.base import KeyPath
from preceptor.stages.encoding import stage_rows, stage_tokenizer
from preceptor.stages.stores import IDENTITY, access_of, mode_for
from preceptor.system.files import sha256_json
from preceptor.teachers import ModelTeacher
from preceptor.teachers.served import ServedTeacher
from preceptor.teachers.store_files import ShardWriter, clean, rows_of, write_manifest
from preceptor.teachers.store_modes import TopMode
from preceptor.teachers.store_report import measured, summary
from preceptor.teachers.store_writer import StoredRow, store_batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preceptor.recipe import StoreStage
    from preceptor.stages.context import StageContext


def execute(spec: StoreStage, context: StageContext) -> dict[str, Any]:
    """Writes `store/`; returns what it is of, its size, and how fast it was written and read back.

    Raises:
        InputError: whatever loading models and data refuses.
    """
    student = context.resolve_model(spec.student)
    loaded: dict[KeyPath, ModelSpec] = {}
    if isinstance(spec.teacher, ModelSpec):
        loaded["teacher",] = spec.teacher
    tokenizer = stage_tokenizer(student, loaded, context)
    rows = _rows(spec, tokenizer, context)
    identity = _identity(spec, tokenizer, context)
    folder = context.directory / "store"
    kept: dict[str, dict[str, Any]] = from_main(
        lambda: clean(folder, identity, lambda line: context.log(f"{context.name}: {line}"))
    )
    done = rows_of(folder, kept)
    batches = [[rows[i] for i in batch] for batch in by_length([len(row.encoded) for row in rows], spec.batch_size)]
    todo = [left for batch in batches if (left := [row for row in batch if row.name not in done])]
    if done:
        context.log(f"{context.name}: goes on after {len(done):,} of {len(rows):,} rows")
    writer = ShardWriter(folder, identity, rank=rank(), shard_bytes=spec.shard_megabytes * 1_000_000)
    seconds = 0.0
    if mine := todo[rank() :: world_size()]:
        seconds = _write(spec, context, tokenizer, mine, writer)
    given = to_main((writer.written, seconds))
    if not is_main():
        return {}
    shards = kept | {name: facts for written, _ in given for name, facts in written.items()}
    manifest = write_manifest(folder, identity, shards)
    fresh = sum(map(_targets, todo))
    slowest = max(taken for _, taken in given)
    results = {
        **summary(manifest),
        "written_per_second": round(fresh / slowest, 1) if slowest else None,
        **measured(folder, spec.batch_size),
    }
    context.log(f"{context.name}: {_sentence(results)}")
    return {**results, IDENTITY: _recorded(identity)}


def _rows(spec: StoreStage, tokenizer: PreTrainedTokenizerBase, context: StageContext) -> list[StoredRow]:
    """Every row of the datasets, training and held-out, each once."""
    found: dict[tuple[bytes, bytes], StoredRow] = {}
    for data in stage_rows(spec, tokenizer, context).values():
        for encoded in (*data.train, *data.holdout, *data.test):
            row = StoredRow.of(encoded)
            found.setdefault(row.name, row)
    return list(found.values())


def _identity(spec: StoreStage, tokenizer: PreTrainedTokenizerBase, context: StageContext) -> dict[str, Any]:
    """What the store is of: whatever its content or its use depends on."""
    return {
        "mode": spec.mode,
        "draws": spec.draws if spec.mode == "sample" else None,
        "k": spec.k if spec.mode == "topk" else None,
        "temperature": spec.temperature,
        "seed": context.seed if spec.mode == "sample" else None,
        "vocabulary": len(tokenizer),
        "max_length": spec.max_length,
        "targets": spec.targets,
        "data": spec.dataset_names,
        "teacher": from_main(lambda: _teacher_facts(spec.teacher, context)),
        "tokenizer": tokenizer_facts(tokenizer),
        "template": template_facts(tokenizer),
    }


def _teacher_facts(teacher: ModelSpec | EndpointSpec, context: StageContext) -> dict[str, Any]:
    """Of a served teacher its name and address stand for its weights, which nobody here can read."""
    if isinstance(teacher, ModelSpec):
        return {**model_facts(context.resolve_model(teacher)), "model": teacher.title}
    url, _ = access_of(teacher, f"stages.{context.name}.teacher.")
    return {"sha256": sha256_json([url, teacher.model]), "model": f"{teacher.model} at {url}"}


def _recorded(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity for stage.json, by which a store that was put in this one's place is told."""
    return {**identity, "template": {"sha256": identity["template"]["sha256"]}}


def _write(
    spec: StoreStage,
    context: StageContext,
    tokenizer: PreTrainedTokenizerBase,
    batches: Sequence[Sequence[StoredRow]],
    writer: ShardWriter,
) -> float:
    """Runs the teacher on this process's batches; returns how many seconds that took, loading left out."""
    store = _stores(spec, context, tokenizer, writer)
    progress = Progress(context.name, sum(map(_targets, batches)), context.log, unit="targets")
    try:
        for batch in batches:
            store(batch)
            progress(_targets(batch))
    except RuntimeError:  # of a served teacher that has gone away: what it has said need not be asked again
        with suppress(OSError):
            writer.flush()
        raise
    writer.flush()
    return time.monotonic() - progress.started


def _stores(
    spec: StoreStage, context: StageContext, tokenizer: PreTrainedTokenizerBase, writer: ShardWriter
) -> Callable[[Sequence[StoredRow]], None]:
    """What runs the teacher on a batch, or asks its server."""
    mode = mode_for(spec, tokenizer)
    if isinstance(spec.teacher, ModelSpec):
        teacher, pad_token_id = _teacher(spec.teacher, context, tokenizer), tokenizer.pad_token_id
        assert isinstance(pad_token_id, int)
        return lambda rows: store_batch(teacher, rows, mode, writer, seed=context.seed, pad_token_id=pad_token_id)
    assert isinstance(mode, TopMode)
    served = _served(
        spec.teacher, f"stages.{context.name}.teacher", lambda line: context.log(f"{context.name}: {line}")
    )
    return lambda rows: served.store(rows, mode, writer, lambda token: str(tokenizer.decode([token])))


def _served(spec: EndpointSpec, where: str, log: Callable[[str], None]) -> ServedTeacher:
    url, key = access_of(spec, f"{where}.")
    return ServedTeacher(
        url,
        spec.model,
        key=key,
        hide=partial(mask, key=key),
        timeout=spec.timeout,
        retries=spec.retries,
        concurrency=spec.concurrency,
        log=log,
    )


def _teacher(spec: ModelSpec, context: StageContext, tokenizer: PreTrainedTokenizerBase) -> ModelTeacher:
    resolved = context.resolve_model(spec)
    model = load_model(resolved, role="teacher")
    check_tokenizer_fits(tokenizer, model)
    head = model.get_output_embeddings()
    if head is not None and head.weight.shape[0] < len(tokenizer):
        raise InputError(
            f"stages.{context.name}.teacher: its output head has {head.weight.shape[0]:,} rows and the tokenizer "
            f"{len(tokenizer):,} tokens; give a teacher that can predict every token"
        )
    if resolved.device_map is None and torch.cuda.is_available():
        device = torch.device("cuda", rank() % torch.cuda.device_count())
        torch.cuda.set_device(device)
        model = model.to(device)
    return ModelTeacher(model, name=f"teacher {spec.title}")


def _targets(batch: Sequence[StoredRow]) -> int:
    return sum(len(row.positions) for row in batch)


def _sentence(results: dict[str, Any]) -> str:
    said = (
        f"{results['rows']:,} rows, {results['target_positions']:,} targets in {results['bytes'] / 1e6:,.1f} MB, "
        f"{results['bytes_per_target']:.1f} bytes per target"
    )
    if results["written_per_second"] is not None:
        said += f"; written at {results['written_per_second']:,.0f} targets/s"
    return f"{said}; read at {results['read_per_second']:,.0f} targets/s"
