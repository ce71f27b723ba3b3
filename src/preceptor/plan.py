"""What a recipe would run, without training: stages, sizes, one row per dataset with its targets marked.

Only configs, tokenizers and data are read; of weights no more than the headers, unless a finished stage read them:
then their content tells whether its result would be kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preceptor.identity import Hashes, stage_identities
from preceptor.recipe import (
    DistillStage,
    EvaluateStage,
    InitStage,
    ModelSpec,
    Recipe,
    SftStage,
    StoreStage,
    TrainTokenizerSpec,
    models_of,
)
from preceptor.recipe.base import stage_of
from preceptor.runs import HASHES_FILE, STAGE_FILE, stage_state
from preceptor.stages.ahead import check_ahead
from preceptor.stages.context import StageContext, run_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preceptor.data.prepare import PreparedDataset

Log = Callable[[str], None]


def plan(recipe: Recipe, *, log: Log = print) -> dict[str, Any]:
    """Describes each stage as it would run; nothing is written.

    Returns `{"name", "directory", "seed", "stages": {name: {"kind", "done", "changed", "reads", "models", "data",
    ...}}}`; `changed` tells what differs where a stage is finished but with another recipe or other data, which a
    run refuses. What a stage that has not run yet decides is given as `"known after stage NAME"`. Raises
    InputError for data and models that are not there or cannot be used, as a run would.
    """
    directory = run_directory(recipe)
    changed = _changed(recipe, directory)
    done = {name for name, differences in changed.items() if not differences}
    check_ahead(recipe, list(recipe.stages), models=False)
    stages: dict[str, Any] = {}
    for name, stage in recipe.stages.items():
        planner = _Planner(recipe, name, directory, done, log)
        entry: dict[str, Any] = {
            "kind": stage.kind,
            "done": name in done,
            "changed": changed.get(name, []),
            "reads": recipe.stage_reads(name),
            "spec": stage.model_dump(mode="json", by_alias=True),
            "models": {
                ".".join(map(str, key)): planner.model(model)
                for key, model in models_of(stage).items()
                if key != ("tokenizer",)
            },
        }
        if isinstance(stage, InitStage):
            entry["models"]["result"] = {"parameters": planner.init_parameters(stage)}
        if isinstance(stage, SftStage | DistillStage):
            entry.update(planner.training(stage))
        if isinstance(stage, EvaluateStage) and stage.has_suites:
            from preceptor.stages.suites import Suites

            entry["suites"] = Suites(stage, planner.context).planned()
        if isinstance(stage, StoreStage):
            entry.update(planner.storing(stage))
        stages[name] = entry
    return {"name": recipe.name, "directory": str(directory), "seed": recipe.seed, "stages": stages}


def _changed(recipe: Recipe, directory: Path) -> dict[str, list[str]]:
    """For each finished stage what differs from the recipe and data it was finished with."""
    finished = [name for name in recipe.stages if (directory / name / STAGE_FILE).exists()]
    documents = stage_identities(recipe, finished, Hashes(directory / HASHES_FILE))
    return {name: stage_state(directory / name, documents[name]).changed for name in finished}


class _Planner:
    """Looks at what one stage reads."""

    def __init__(self, recipe: Recipe, name: str, directory: Path, done: set[str], log: Log) -> None:
        self.recipe, self.name, self.done = recipe, name, done
        self.log: Log = lambda line: log(f"{name}: {line}")
        self.context = StageContext(recipe, name, directory / name, recipe.seed, self.log)

    def model(self, spec: ModelSpec) -> dict[str, Any]:
        """Where a model comes from and how many parameters it has."""
        source = stage_of(spec.path)
        if source is not None and source not in self.done:
            return {"path": spec.path, "adapter": spec.adapter, "parameters": self._after(source)}
        from preceptor.models.checkpoint import check_model
        from preceptor.stages.stores import stored_at
        from preceptor.teachers.store_report import in_short

        if (store := stored_at(spec, self.context)) is not None:
            return {"path": spec.path, "adapter": None, "parameters": in_short(store)}
        unmade = spec.adapter is not None and (adapter := stage_of(spec.adapter)) and adapter not in self.done
        resolved = self.context.resolve_model(spec.model_copy(update={"adapter": None}) if unmade else spec)
        if not Path(resolved.path).is_dir():
            return {"path": resolved.path, "adapter": resolved.adapter, **_on_the_hub(resolved)}
        checkpoint = check_model(resolved)
        return {
            "path": resolved.path,
            "adapter": spec.adapter if unmade else resolved.adapter,
            "parameters": checkpoint.parameters,
            "dtype": str(checkpoint.dtype).removeprefix("torch."),
            "architecture": str(checkpoint.config.get("model_type")),
        }

    def init_parameters(self, stage: InitStage) -> int | str:
        """Parameters of the model an `init` stage makes, built without memory for its weights.

        "known after stage NAME" where that stage's tokenizer decides the size of the vocabulary.
        """
        import torch
        from transformers import AutoModelForCausalLM

        from preceptor.stages.init import build_config

        keys, known = dict(stage.config), None
        if "vocab_size" not in keys and isinstance(stage.tokenizer, TrainTokenizerSpec):
            keys["vocab_size"] = stage.tokenizer.vocab_size
        elif "vocab_size" not in keys and isinstance(stage.tokenizer, str):
            known = self._tokenizer(ModelSpec(path=stage.tokenizer))
            if known is None:
                return self._after(str(stage_of(stage.tokenizer)))
        config = build_config(keys, known, f"stages.{self.name}")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        return int(sum(parameter.numel() for parameter in model.parameters()))

    def training(self, stage: SftStage | DistillStage) -> dict[str, Any]:
        """Rows, tokens and targets of a training stage, and a sample of each dataset."""
        student = stage.student if isinstance(stage, DistillStage) else stage.model
        tokenizer = self._tokenizer(student)
        if tokenizer is None:
            source = stage_of(student.path)
            return {"data": {name: self._after(str(source)) for name in stage.dataset_names}}
        # Teachers share the student's tokenizer, so any of them knows the template.
        teacher = next(iter(stage.teachers.values())) if isinstance(stage, DistillStage) else None
        found, prepared = self._rows(stage, tokenizer, teacher)
        result: dict[str, Any] = {**found, "rows_per_step": stage.rows_per_step}
        pending = [source for name in stage.dataset_names if (source := self._pending(name)) is not None]
        if pending:
            result["rows_per_epoch"] = self._after(pending[0])
            return result
        from preceptor.data.mixture import Mixture

        mixture = Mixture(
            {name: dataset.train for name, dataset in prepared.items()},
            shares=stage.shares,
            by=stage.by,
            rows=stage.rows,
            seed=self.recipe.seed,
            multiple_of=stage.rows_per_step,
        )
        result["rows_per_epoch"] = mixture.epoch_rows
        result["steps_per_epoch"] = math.ceil(mixture.epoch_rows / stage.rows_per_step)
        result["epoch"] = {name: summary.as_dict() for name, summary in mixture.summary().items()}
        return result

    def storing(self, stage: StoreStage) -> dict[str, Any]:
        """Rows and targets that a store stage keeps, and the least and the most bytes that they take on disk."""
        tokenizer = self._tokenizer(stage.student)
        if tokenizer is None:
            after = self._after(str(stage_of(stage.student.path)))
            return {"data": dict.fromkeys(stage.dataset_names, after)}
        loaded = stage.teacher if isinstance(stage.teacher, ModelSpec) else None
        found, prepared = self._rows(stage, tokenizer, loaded)
        if len(prepared) < len(stage.dataset_names):
            return found
        from preceptor.stages.stores import mode_for
        from preceptor.teachers.store_files import bytes_of
        from preceptor.teachers.store_writer import StoredRow

        rows = [row for data in prepared.values() for part in (data.train, data.holdout, data.test) for row in part]
        counts = {StoredRow.of(row).name: row.target_count for row in rows}  # equal rows are stored once
        sizes = bytes_of(mode_for(stage, tokenizer), len(counts), sum(counts.values()), stage.shard_megabytes)
        return {**found, "rows": len(counts), "targets": sum(counts.values()), "bytes": list(sizes)}

    def _rows(
        self,
        stage: SftStage | DistillStage | StoreStage,
        tokenizer: PreTrainedTokenizerBase,
        teacher: ModelSpec | None,
    ) -> tuple[dict[str, Any], dict[str, PreparedDataset]]:
        """The chat template, a description of each dataset, and those that can be encoded by now."""
        from preceptor.data.template import choose_template

        template = choose_template(tokenizer, None if teacher is None else self._template(teacher))
        pending = {name: source for name in stage.dataset_names if (source := self._pending(name)) is not None}
        ready = [name for name in stage.dataset_names if name not in pending]
        prepared = self._prepare(ready, tokenizer, stage) if ready else {}
        described = {name: _described(prepared[name], tokenizer) for name in ready}
        later = {name: self._after(source) for name, source in pending.items()}
        return {"template": template, "data": described | later}, prepared

    def _template(self, teacher: ModelSpec) -> PreTrainedTokenizerBase | str | None:
        """A teacher's tokenizer, which has its chat template; of a stored teacher the template."""
        from preceptor.stages.stores import manifest_of, stored_at

        stage = self.recipe.stages.get(stage_of(teacher.path) or "")
        if isinstance(stage, StoreStage) and stage_of(teacher.path) not in self.done:
            return self._template(stage.teacher) if isinstance(stage.teacher, ModelSpec) else None
        folder = stored_at(teacher, self.context)
        if folder is None:
            return self._tokenizer(teacher)
        return str(manifest_of(teacher, folder, self.context)["template"]["text"])

    def _prepare(
        self, names: list[str], tokenizer: PreTrainedTokenizerBase, stage: SftStage | DistillStage | StoreStage
    ) -> dict[str, PreparedDataset]:
        from preceptor.data.prepare import prepare_datasets
        from preceptor.stages.datasets import specs_for

        specs, generated = specs_for(names, self.context)
        if stage.targets is not None:  # as `stage_rows`
            specs |= {name: specs[name].model_copy(update={"targets": stage.targets}) for name in names}
        return prepare_datasets(
            names,
            specs,
            tokenizer,
            seed=self.recipe.seed,
            max_length=stage.max_length,
            overlap=self.recipe.overlap,
            announce=self.log,
            generated=generated,
        )

    def _tokenizer(self, spec: ModelSpec) -> PreTrainedTokenizerBase | None:
        """The tokenizer of a model, or None when a stage that has not run yet makes it."""
        from preceptor.models.tokenizers import load_tokenizer

        source = stage_of(spec.path)
        if source is None or source in self.done:
            unmade = spec.adapter is not None and stage_of(spec.adapter)
            return load_tokenizer(
                self.context.resolve_model(spec.model_copy(update={"adapter": None}) if unmade else spec)
            )
        stage = self.recipe.stages[source]
        if isinstance(stage, InitStage):
            return self._tokenizer(ModelSpec(path=stage.tokenizer)) if isinstance(stage.tokenizer, str) else None
        # Every other stage passes on the tokenizer of the first model it reads.
        return self._tokenizer(next(iter(models_of(stage).values())))

    def _pending(self, dataset: str) -> str | None:
        """The stage that has yet to write some of a dataset's rows."""
        return next((source for source in self.recipe.dataset(dataset).stages if source not in self.done), None)

    @staticmethod
    def _after(stage: str) -> str:
        return f"known after stage {stage}"


def _on_the_hub(spec: ModelSpec) -> dict[str, Any]:
    """Parameters and dtype of a model on the Hub, from its weight files' headers, without fetching it."""
    from huggingface_hub import HfApi

    try:
        counts = HfApi().get_safetensors_metadata(spec.path, revision=spec.revision).parameter_count
    except Exception as error:  # of a class that depends on the client's HTTP library
        return {"parameters": f"unknown, since the Hub does not answer ({type(error).__name__})"}
    dtype = max(counts, key=lambda name: counts[name])
    return {"parameters": sum(counts.values()), "dtype": dtype}


def _described(dataset: PreparedDataset, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    from preceptor.data.chat import render_sample

    return {
        "rows": len(dataset.train),
        "tokens": sum(len(row) for row in dataset.train),
        "targets": sum(row.target_count for row in dataset.train),
        "holdout": len(dataset.holdout),
        "test": len(dataset.test),
        "dropped": dict(dataset.dropped),
        "sample": render_sample(dataset.train[0], tokenizer) if dataset.train else None,
    }


def render(result: dict[str, Any]) -> str:
    """The plan as text for a terminal."""
    lines = [f"{result['name']} -> {result['directory']}, seed {result['seed']}"]
    for name, stage in result["stages"].items():
        reads = f", reads {', '.join(stage['reads'])}" if stage["reads"] else ""
        state = " (done)" if stage["done"] else ""
        if stage["changed"]:
            state = f" (finished with another recipe or other data; a run needs --redo {name})"
        lines += ["", f"{name}: {stage['kind']}{reads}{state}"]
        for key, model in stage["models"].items():
            parts = [str(model[part]) for part in ("path", "architecture", "dtype") if model.get(part)]
            if model.get("adapter"):
                parts[0] += f" with {model['adapter']}"
            lines.append(f"  {key}: {', '.join([*parts, _amount(model['parameters'], 'parameters')])}")
        for dataset, data in stage.get("data", {}).items():
            lines += _dataset_lines(dataset, data)
        if "bytes" in stage:
            low, high = (f"{size / 1e6:,.1f}" for size in stage["bytes"])
            size = low if low == high else f"{low} to {high}"
            lines.append(f"  the store: {_amount(stage['targets'], 'targets')}, {size} MB")
        lines += [f"  {suite}: {what}" for suite, what in stage.get("suites", {}).items()]
        if "rows_per_epoch" in stage:
            steps = f", {stage['steps_per_epoch']:,} steps of {stage['rows_per_step']}" if "epoch" in stage else ""
            lines.append(f"  an epoch: {_amount(stage['rows_per_epoch'], 'rows')}{steps}")
        for dataset, share in stage.get("epoch", {}).items():
            lines.append(f"    {dataset}: " + ", ".join(_amount(count, what) for what, count in share.items()))
    return "\n".join(lines)


def _dataset_lines(name: str, data: Any) -> list[str]:
    if isinstance(data, str):
        return [f"  {name}: {data}"]
    counts = ", ".join(_amount(data[what], what) for what in ("rows", "tokens", "targets"))
    kept = "".join(f", {data[what]:,} {what}" for what in ("holdout", "test") if data[what])
    dropped = "".join(f"; dropped {count:,}: {reason}" for reason, count in data["dropped"].items())
    sample = data["sample"] or "no row"
    return [f"  {name}: {counts}{kept}{dropped}", "    " + _short(sample).replace("\n", "\n    ")]


def _short(sample: str, limit: int = 1200) -> str:
    if len(sample) <= limit:
        return sample
    return f"{sample[: limit // 2]} … {sample[-limit // 2 :]}"


def _amount(value: Any, what: str) -> str:
    if isinstance(value, float):
        return f"{value:.3g} {what}"
    return f"{value:,} {what}" if isinstance(value, int) else str(value)
