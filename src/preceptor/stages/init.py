"""The `init` stage: a model with random weights from a config block, with a tokenizer given or trained here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from jinja2.exceptions import TemplateError

from preceptor.data.template import DEFAULT_TEMPLATE, ChatTemplate
from preceptor.errors import InputError, did_you_mean, first_sentence, shown
from preceptor.models.card import render_card
from preceptor.models.load import quiet_transformers
from preceptor.models.save import save_model
from preceptor.models.tokenizers import load_tokenizer, train_tokenizer
from preceptor.recipe import ModelSpec, TrainTokenizerSpec, expand, local_path
from preceptor.recipe.base import one_or_many
from preceptor.stages.datasets import split_for

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from preceptor.recipe import InitStage
    from preceptor.stages.context import StageContext

# Spellings of older configs that transformers still turns into `rope_parameters`.
_OLDER_KEYS = ("rope_theta", "rope_scaling")


def execute(spec: InitStage, context: StageContext) -> dict[str, Any]:
    """Writes `model/`: the weights drawn from the run's seed, in float32 and saved as `spec.dtype`.

    `vocab_size` and the special tokens' ids come from the tokenizer where the config block leaves them out.

    Raises:
        InputError: a config key or value transformers does not accept, a vocabulary smaller than the
            tokenizer's, a template that cannot be read, or whatever reading the tokenizer's data refuses.
    """
    where = f"stages.{context.name}"
    build_config(spec.config, None, where)  # a mistyped key is told before a tokenizer is trained
    template = _template(spec.chat_template, context)
    tokenizer = _tokenizer(spec, context, template or DEFAULT_TEMPLATE)
    config = build_config(spec.config, tokenizer, where)
    if tokenizer is not None:
        if template is not None:
            tokenizer.chat_template = template
            _check_template(tokenizer, where)
        longest = getattr(config, "max_position_embeddings", None)
        if isinstance(spec.tokenizer, TrainTokenizerSpec) and longest is not None:
            tokenizer.model_max_length = longest
    else:
        context.log(f"{context.name}: no tokenizer is saved; a stage that trains this model needs one")
    model = draw_model(config, context.seed, where)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    context.log(f"{context.name}: {type(model).__name__} with {parameters:,} parameters")
    results: dict[str, Any] = {"parameters": parameters, "architecture": type(model).__name__}
    if tokenizer is not None:
        results["vocabulary"] = len(tokenizer)
    card = render_card(
        name=context.recipe.name,
        stage=context.name,
        kind="init",
        training={"config": spec.config},
        results=results,
        seed=context.seed,
    )
    dtype: torch.dtype = getattr(torch, spec.dtype)
    save_model(model, tokenizer, context.directory / "model", dtype=dtype, card=card)
    return results


def build_config(given: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase | None, where: str) -> PreTrainedConfig:
    """The transformers config of a `config:` block, completed from the tokenizer.

    Raises:
        InputError: an unknown `model_type` or key (transformers would keep it unread), a value of the wrong
            type or range, or fewer embedding rows than the tokenizer has tokens.
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    values = dict(given)
    kind = values.pop("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind not in CONFIG_MAPPING:
        raise InputError(
            f"{where}.config.model_type: {shown(kind)} is no causal language model of the installed "
            "transformers"
            f"{did_you_mean(kind, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}; accepted are for example llama, "
            "mistral, mixtral"
        )
    cls = CONFIG_MAPPING[kind]
    known = {field.name for field in fields(cls)} | set(cls.attribute_map) | set(_OLDER_KEYS)
    for key in values:
        if key not in known:
            raise InputError(
                f"{where}.config.{key}: is not a key of the {kind} config{did_you_mean(key, known)}; "
                "remove or correct it"
            )
    if tokenizer is not None:
        size = max(tokenizer.get_vocab().values()) + 1
        values.setdefault("vocab_size", size)
        if isinstance(values["vocab_size"], int) and values["vocab_size"] < size:
            raise InputError(
                f"{where}.config.vocab_size: is {values['vocab_size']:,}, but the tokenizer has {size:,} "
                "tokens; "
                "raise it or leave it out"
            )
        values.setdefault("bos_token_id", tokenizer.bos_token_id)
        values.setdefault("eos_token_id", tokenizer.eos_token_id)
        if tokenizer.pad_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
            # The embedding of the id named here never learns, which must not happen to a token with a meaning.
            values.setdefault("pad_token_id", tokenizer.pad_token_id)
    try:
        with quiet_transformers():
            return AutoConfig.for_model(kind, **values)
    except Exception as error:
        if isinstance(error, ValueError | TypeError) or type(error).__name__.startswith("StrictDataclass"):
            detail = str(error).splitlines()[-1].strip().removeprefix("ValueError: ")
            detail = detail.removeprefix("TypeError: ").rstrip(".")
            raise InputError(f"{where}.config: transformers refuses it ({detail}); correct it") from error
        raise


def draw_model(config: PreTrainedConfig, seed: int, where: str) -> Any:
    """A float32 model with transformers' initialisation, drawn from `seed` without disturbing other draws.

    Raises:
        InputError: the sizes in the config do not fit together.
    """
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(seed)
        try:
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except (ValueError, TypeError, RuntimeError, KeyError, ZeroDivisionError, AssertionError) as error:
            raise InputError(
                f"{where}.config: no {config.model_type} can be built from it ({first_sentence(error)}); correct it"
            ) from error


def _tokenizer(spec: InitStage, context: StageContext, template: str) -> PreTrainedTokenizerBase | None:
    if spec.tokenizer is None:
        return None
    if isinstance(spec.tokenizer, str):
        return load_tokenizer(context.resolve_model(ModelSpec(path=spec.tokenizer)), announce=context.log)
    where = f"stages.{context.name}.tokenizer"
    tokenizer = train_tokenizer(
        _texts(spec.tokenizer, context, template),
        vocab_size=spec.tokenizer.vocab_size,
        kind=spec.tokenizer.kind,
        announce=context.log,
        where=where,
    )
    context.log(f"{context.name}: trained a {spec.tokenizer.kind} tokenizer of {len(tokenizer):,} tokens")
    return tokenizer


def _texts(spec: TrainTokenizerSpec, context: StageContext, template: str) -> Iterator[str]:
    """The training rows as the model will see them: what a template writes around the turns is text too."""
    from transformers.utils.chat_template_utils import render_jinja_template

    for part in split_for(one_or_many(spec.train_on), context).values():
        for row in part.train:
            if row.messages is None:
                yield row.text or ""
                continue
            try:
                rendered, _ = render_jinja_template(
                    [list(row.messages)], chat_template=template, bos_token="", eos_token=""
                )
                yield rendered[0]
            except Exception:  # the template refuses it, or its code stumbles over it
                yield "\n".join(message["content"] for message in row.messages)


def _template(given: str | None, context: StageContext) -> str | None:
    if given is None or given == "default":
        return DEFAULT_TEMPLATE if given else None
    where = f"stages.{context.name}.chat_template"
    try:
        path = local_path(given, context.recipe.folder)
    except InputError:
        path = None  # it speaks of models and data
    if path is None or not path.is_file():
        raise InputError(f"{where}: there is no file {expand(given)!r}; give a Jinja file's path, or `default`")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: {given!r} cannot be read as text ({first_sentence(error)}); mend it") from error
    if not text.strip():
        raise InputError(f"{where}: {given!r} is empty; give a Jinja template, or `default`")
    return text


def _check_template(tokenizer: PreTrainedTokenizerBase, where: str) -> None:
    try:
        ChatTemplate(tokenizer).render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    except TemplateError as error:
        raise InputError(
            f"{where}.chat_template: is no valid Jinja chat template ({first_sentence(error)}); mend it"
        ) from error
