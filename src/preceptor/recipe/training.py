"""Specs of the stages that train: fine-tuning, and distillation from one teacher or several."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, model_validator

from preceptor.errors import accepted
from preceptor.recipe.base import KeyPath, Spec, Whole0, Whole1, Whole2, broken_rule, choice, one_or_many, real, wanted
from preceptor.recipe.models import LoraSpec, Model, ModelSpec
from preceptor.recipe.objective import TAUGHT, AttentionSpec, LogitsSpec, NextTokenSpec, Term
from preceptor.recipe.routes import Teacher

# Keys of transformers.TrainingArguments that we set ourselves, and what to write instead.
OWNED_TRAINING_KEYS = {
    "output_dir": "results go to runs_dir/name/stage, so use `runs_dir` and `name` of the recipe",
    "seed": "use `seed` of the recipe",
    "data_seed": "use `seed` of the recipe",
    "resume_from_checkpoint": "a run resumes by itself, and `--redo STAGE` starts a stage over",
    "gradient_accumulation_steps": "use `rows_per_step` of the stage, from which it follows",
    "remove_unused_columns": "use `columns` and `where` of the dataset",
    "label_names": "use `targets` of the dataset",
    "label_smoothing_factor": "use `objective` of the stage",
    "average_tokens_across_devices": "every step is divided by its global number of targets already",
    "accelerator_config": "use `rows_per_step` and `data` of the stage",
    "prediction_loss_only": "evaluation uses the `objective` of the stage and gathers no logits",
    "push_to_hub": "upload the finished model with the `hf` command",
    "logging_dir": "TensorBoard's files go to the stage's `tensorboard` folder, or where TENSORBOARD_LOGGING_DIR says",
    "auto_find_batch_size": "use `per_device_train_batch_size`, which has to divide `rows_per_step`",
    "ignore_data_skip": "leave it out, since a stopped run goes on at the row where it was",
    "enable_jit_checkpoint": "leave it out, since the first SIGTERM or Ctrl-C writes a checkpoint already",
    "save_only_model": "use `save_total_limit`, since a stopped run goes on from whole checkpoints only",
    "train_sampling_strategy": "use `data` and `by` of the stage, from which the order of its rows follows",
}
DEFAULT_BATCH = 8
"""What transformers.TrainingArguments takes where `per_device_train_batch_size` is left out."""


NEWER_NAMES = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}
"""What newer versions of transformers call keys of `training:`, and the older names, under which stages are kept."""


def _training(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wanted("a mapping of transformers.TrainingArguments keys")
    for newer, older in NEWER_NAMES.items():
        if newer in value and older in value:
            raise broken_rule(f"has both `{newer}` and `{older}`, two names of one key; keep one of them")
    renamed: dict[Any, Any] = {NEWER_NAMES.get(key, key): given for key, given in value.items()}
    return renamed


def _data(value: Any) -> str | dict[str, float]:
    if isinstance(value, str) and value.strip():
        return value
    if not isinstance(value, dict) or not value:
        raise wanted("a dataset's name, or shares such as {shop: 0.1, general: 0.9}")
    for name, share in value.items():
        if type(share) not in (int, float) or not 0 < share <= 1:
            raise broken_rule(f"the share of {name} is {share!r}; write a number above 0 and at most 1")
    total = sum(value.values())
    if abs(total - 1) > 1e-6:
        raise broken_rule(f"the shares sum to {total:g}; change them so that they sum to 1")
    return {name: float(share) for name, share in value.items()}


class TrainingStage(Spec):
    """What `sft` and `distill` share."""

    data: Annotated[str | dict[str, float], PlainValidator(_data)]
    """A dataset, or shares of several that sum to 1."""
    by: Annotated[Literal["rows", "targets"], choice("rows", "targets")] = "rows"
    """What the shares are shares of."""
    rows: Whole1 | None = None
    """Rows per epoch; None is the most at which no dataset repeats."""
    rows_per_step: Whole1 = 16
    """Rows per optimiser step, over all devices; gradient accumulation follows from it."""
    max_length: Whole2 = 2048
    """Tokens per row after templating; longer rows are cut, rows left without targets dropped."""
    targets: Annotated[Literal["assistant", "all"], choice("assistant", "all")] | None = None
    """Which tokens are targets in this stage (`all`: pre-training); None: as each dataset says."""
    packing: bool = False
    """Several rows of one dataset share one padded row; changes the padding, not the results."""
    objective: list[Term] = Field(default_factory=list)
    """Terms whose weighted sum is minimised."""
    lora: LoraSpec | None = None
    """Trains a low-rank adapter instead of the whole model; the result is `adapter/`."""
    training: Annotated[dict[str, Any], PlainValidator(_training)] = Field(default_factory=dict)
    """Keys of transformers.TrainingArguments."""
    max_nonfinite_steps: Whole0 = 10
    """Steps in a row whose loss or gradient may be NaN or infinite: each is skipped, and one more ends the stage."""

    @model_validator(mode="after")
    def _whole_accumulation(self) -> TrainingStage:
        batch = self.training.get("per_device_train_batch_size", DEFAULT_BATCH)
        if type(batch) is not int or batch < 1:
            raise broken_rule(f"training.per_device_train_batch_size is {batch!r}; write a whole number of at least 1")
        if self.rows_per_step % batch:
            default = "" if "per_device_train_batch_size" in self.training else " (its default)"
            raise broken_rule(
                f"rows_per_step is {self.rows_per_step}, which is not a multiple of "
                f"training.per_device_train_batch_size = {batch}{default}; change one of them"
            )
        return self

    @property
    def dataset_names(self) -> list[str]:
        """Names of the datasets it trains on; `stage:NAME` stands for itself."""
        return one_or_many(self.data)

    @property
    def shares(self) -> dict[str, float]:
        """Share of each dataset."""
        return {self.data: 1.0} if isinstance(self.data, str) else dict(self.data)


def _sound(terms: list[Any]) -> list[Any]:
    for index, term in enumerate(terms):
        alike = [other for other in terms[:index] if other.kind == term.kind]
        if alike and term.kind == "attention":
            raise broken_rule("has two attention terms; keep one of them")
        if any(set(term.routes or ()) == set(other.routes or ()) for other in alike):
            raise broken_rule(
                f"has two {term.kind} terms for the same rows; keep one of them, or give them different `routes`"
            )
    if not any(term.weight > 0 for term in terms):
        raise broken_rule("has no term with a weight above 0; list at least one, such as [{kind: logits}]")
    return terms


def _without_teacher(terms: list[Any]) -> list[Any]:
    other = [term.kind for term in terms if term.kind in TAUGHT]
    if other:
        raise broken_rule(
            f"an sft stage has no teacher, so its objective holds next_token and router_balance only, not "
            f"{accepted(other)}; use kind: distill for the others"
        )
    return _sound(terms)


class SftStage(TrainingStage):
    """Training on the data's own answers, without a teacher."""

    kind: Literal["sft"]
    model: Model
    """What is trained."""
    objective: Annotated[list[Term], AfterValidator(_without_teacher)] = Field(
        default_factory=lambda: list[Term]([NextTokenSpec()])
    )
    """Terms whose weighted sum is minimised: `next_token` and `router_balance`."""


class DistillStage(TrainingStage):
    """Training against a teacher, or against several, each on the rows of its route."""

    kind: Literal["distill"]
    student: Model
    """What is trained."""
    teacher: Teacher
    """What it follows: a model, a store of predictions, or several by route."""
    objective: Annotated[list[Term], AfterValidator(_sound)] = Field(default_factory=lambda: list[Term]([LogitsSpec()]))
    """Terms whose weighted sum is minimised."""
    lambda_: Annotated[float, real(0.0, 1.0)] | None = Field(default=None, alias="lambda")
    """λ of the paper: stands for next_token with weight 1-λ and logits and attention with weight λ each.

    Loading writes it out into `objective`, so two spellings of one objective have one identity.
    """

    @property
    def teachers(self) -> dict[KeyPath, ModelSpec]:
        """Every teacher by its key path inside the stage."""
        if isinstance(self.teacher, ModelSpec):
            return {("teacher",): self.teacher}
        return {("teacher", *key): model for key, model in self.teacher.models().items()}

    @model_validator(mode="before")
    @classmethod
    def _write_out_lambda(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("lambda") is None:
            return value
        if "objective" in value:
            raise broken_rule("has both `lambda` and `objective`; keep one of them")
        share = value["lambda"]
        if type(share) not in (int, float) or not 0 <= share <= 1:
            return value  # the field's own check words the error
        terms = [(NextTokenSpec, round(1 - share, 12)), (LogitsSpec, share), (AttentionSpec, share)]
        objective = [spec(weight=weight) for spec, weight in terms if weight > 0]
        return {**{key: item for key, item in value.items() if key != "lambda"}, "objective": objective}
