"""Looks at what one stage of a recipe reads: its models, its rows, and how many of them make an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preceptor.estimate.models import meta_model
from preceptor.estimate.setups import ModelSetup
from preceptor.estimate.target import Device
from preceptor.models.quantization import quantization_config
from preceptor.plan.epoch import Epoch, epoch_of
from preceptor.plan.predict import predict, predict_store
from preceptor.plan.setups import Rows, store_setup, training_setup
from preceptor.plan.shared import Shared
from preceptor.plan.sources import Sources, config_alone, look, why
from preceptor.recipe import (
    DistillStage,
    InitStage,
    ModelSpec,
    Recipe,
    SftStage,
    StoreStage,
    TrainTokenizerSpec,
    models_of,
)
from preceptor.recipe.base import stage_of
from preceptor.stages.context import StageContext

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preceptor.data.prepare import PreparedDataset

Log = Callable[[str], None]


class Planner:
    """Looks at what one stage reads."""

    def __init__(
        self, recipe: Recipe, name: str, directory: Path, done: set[str], log: Log, shared: Shared | None = None
    ) -> None:
        self.recipe, self.name, self.done, self.shared = recipe, name, done, shared or Shared()
        self.log: Log = lambda line: log(f"{name}: {line}")
        self.context = StageContext(recipe, name, directory / name, recipe.seed, self.log)
        self.sources = Sources(self.context, done, self._tokenizer)

    def model(self, spec: ModelSpec) -> dict[str, Any]:
        """Where a model comes from and how many parameters it has."""
        source = stage_of(spec.path)
        if source is not None and source not in self.done:
            return {"path": spec.path, "adapter": spec.adapter, "parameters": self._after(source)}
        from preceptor.stages.stores import stored_at
        from preceptor.teachers.store_report import in_short

        if (store := stored_at(spec, self.context)) is not None:
            return {"path": spec.path, "adapter": None, "parameters": in_short(store)}
        unmade = spec.adapter is not None and (adapter := stage_of(spec.adapter)) and adapter not in self.done
        resolved = self.context.resolve_model(spec.model_copy(update={"adapter": None}) if unmade else spec)
        if not Path(resolved.path).is_dir():
            return {"path": resolved.path, "adapter": resolved.adapter, **_on_the_hub(resolved)}
        quantization_config(resolved)  # refuses what no machine could do
        adapter = spec.adapter if unmade else resolved.adapter
        if config_alone(resolved) is not None:
            return {"path": resolved.path, "adapter": adapter, **self._without_weights(spec)}
        checkpoint = look(resolved)
        return {
            "path": resolved.path,
            "adapter": adapter,
            "parameters": checkpoint.parameters,
            "dtype": str(checkpoint.dtype).removeprefix("torch."),
            "architecture": str(checkpoint.config.get("model_type")),
        }

    def _without_weights(self, spec: ModelSpec) -> dict[str, Any]:
        """Of a model folder that holds a config and no weights, which a run refuses and a plan does not need."""
        missing = "missing, and a run needs them"
        try:
            found = self.sources.describe(spec.model_copy(update={"adapter": None}))
            model = meta_model(ModelSetup(found.config, found.dtype, trust_remote_code=spec.trust_remote_code))
        except Exception as error:  # of any class: what a config asks of transformers may be anything
            return {"parameters": f"parameters unknown: {why(error)}", "weights": missing}
        return {
            "parameters": int(sum(parameter.numel() for parameter in model.parameters())),
            "dtype": str(found.dtype).removeprefix("torch."),
            "architecture": str(found.config.model_type),
            "weights": missing,
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

    def training(self, stage: SftStage | DistillStage, device: Device | None) -> dict[str, Any]:
        """Rows, tokens and targets of a training stage, a sample of each dataset, and what it needs of a device."""
        student = stage.student if isinstance(stage, DistillStage) else stage.model
        tokenizer = self._tokenizer(student)
        rows = Rows(None, None)
        epoch = None
        if tokenizer is None:
            source = stage_of(student.path)
            result: dict[str, Any] = {"data": {name: self._after(str(source)) for name in stage.dataset_names}}
        else:
            # Teachers share the student's tokenizer, so any of them knows the template.
            teacher = next(iter(stage.teachers.values())) if isinstance(stage, DistillStage) else None
            found, prepared = self._rows(stage, tokenizer, teacher)
            rows = Rows(prepared, len(tokenizer), tokenizer.pad_token_id or 0)
            shares, epoch = self._epoch(stage, prepared, 1 if device is None else device.devices)
            result = {**found, "rows_per_step": stage.rows_per_step, **shares}
        if device is None:
            return result
        batch = None if epoch is None else epoch.largest
        needs = predict(
            stage,
            lambda: training_setup(stage, self.context, self.sources, rows, device.devices, batch),
            epoch,
            device,
            self.shared.simulate,
        )
        return {**result, **needs}

    def _epoch(
        self, stage: SftStage | DistillStage, prepared: dict[str, PreparedDataset], devices: int
    ) -> tuple[dict[str, Any], Epoch | None]:
        """What an epoch takes of each dataset, and its size; None while rows are yet to be written."""
        pending = [source for name in stage.dataset_names if (source := self._pending(name)) is not None]
        if pending:
            return {"rows_per_epoch": self._after(pending[0])}, None
        from preceptor.data.mixture import Mixture

        mixture = Mixture(
            {name: dataset.train for name, dataset in prepared.items()},
            shares=stage.shares,
            by=stage.by,
            rows=stage.rows,
            seed=self.recipe.seed,
            multiple_of=stage.rows_per_step,
        )
        shares = {
            "rows_per_epoch": mixture.epoch_rows,
            "steps_per_epoch": math.ceil(mixture.epoch_rows / stage.rows_per_step),
            "epoch": {name: summary.as_dict() for name, summary in mixture.summary().items()},
        }
        return shares, epoch_of(stage, mixture, prepared.values(), devices)

    def storing(self, stage: StoreStage, device: Device | None) -> dict[str, Any]:
        """Rows and targets that a store stage keeps, the least and the most bytes that they take, and what it needs."""
        tokenizer = self._tokenizer(stage.student)
        rows = Rows(None, None)
        if tokenizer is None:
            after = self._after(str(stage_of(stage.student.path)))
            result: dict[str, Any] = {"data": dict.fromkeys(stage.dataset_names, after)}
        else:
            loaded = stage.teacher if isinstance(stage.teacher, ModelSpec) else None
            result, prepared = self._rows(stage, tokenizer, loaded)
            rows = Rows(prepared, len(tokenizer), tokenizer.pad_token_id or 0)
            if len(prepared) == len(stage.dataset_names):
                result |= _kept(stage, prepared, tokenizer)
        if device is None or not isinstance(stage.teacher, ModelSpec):
            return result
        return {**result, **predict_store(lambda: store_setup(stage, self.sources, rows), device)}

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
        from preceptor.stages.datasets import specs_for

        specs, generated = specs_for(names, self.context)
        if stage.targets is not None:  # as `stage_rows`
            specs |= {name: specs[name].model_copy(update={"targets": stage.targets}) for name in names}
        return self.shared.prepare(
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


def _kept(
    stage: StoreStage, prepared: dict[str, PreparedDataset], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Rows and targets that are stored, and the least and the most bytes of them."""
    from preceptor.stages.stores import mode_for
    from preceptor.teachers.store_files import bytes_of
    from preceptor.teachers.store_writer import StoredRow

    rows = [row for data in prepared.values() for part in (data.train, data.holdout, data.test) for row in part]
    counts = {StoredRow.of(row).name: row.target_count for row in rows}  # equal rows are stored once
    sizes = bytes_of(mode_for(stage, tokenizer), len(counts), sum(counts.values()), stage.shard_megabytes)
    return {"rows": len(counts), "targets": sum(counts.values()), "bytes": list(sizes)}
