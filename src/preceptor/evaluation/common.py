"""The rows that every model of an evaluation can be given, in the tokens of each.

Settled before a weight is read: a comparison is worth something on the same rows only, so a row that one tokenizer
cannot render or one context cannot hold is left out for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from preceptor.data.chat import Dropped
from preceptor.data.template import choose_template
from preceptor.errors import InputError
from preceptor.evaluation.encode import EncodedQuestion, encode_questions
from preceptor.evaluation.rows import EvaluationSet
from preceptor.evaluation.scores import DatasetFacts
from preceptor.models.load import check_model
from preceptor.models.tokenizers import load_tokenizer, same_tokenizer
from preceptor.system.files import sha256_json

if TYPE_CHECKING:
    from preceptor.recipe import ModelSpec

Log = Callable[[str], None]
Pairs = list[tuple[EvaluationSet, list[EncodedQuestion]]]


@dataclass(frozen=True)
class CommonRows:
    """What `common_rows` settles.

    `sets` hold the rows kept and `facts` what was lost; `tokenizers` are by model; `max_length` is in tokens.
    """

    sets: list[EvaluationSet]
    facts: dict[str, DatasetFacts]
    max_length: int
    tokenizers: dict[str, PreTrainedTokenizerBase]
    _encoded: dict[str, list[list[EncodedQuestion]]]

    def of(self, model: str) -> Pairs:
        """The rows with the tokens of one model."""
        return list(zip(self.sets, self._encoded[_fingerprint(self.tokenizers[model])], strict=True))


def common_rows(
    models: Mapping[str, ModelSpec],
    sets: Sequence[EvaluationSet],
    *,
    max_length: int,
    reference: str | None,
    compared: Mapping[str, str],
    log: Log,
) -> CommonRows:
    """Loads the tokenizers and encodes all rows with each that differs from the others.

    Args:
        models: by name, paths resolved.
        sets: the rows.
        max_length: tokens of a row; less where a model's context is shorter.
        reference: whose chat template a model without one is given.
        compared: the models that KL is taken to, by what they are called ("reference", "expert").
        log: takes a line for each dataset and each surprise.

    Raises:
        InputError: a tokenizer that cannot be read, or that differs from that of a model compared with; a dataset
            without a usable row.
    """
    longest = _longest(models, max_length, log)
    tokenizers = {name: load_tokenizer(spec) for name, spec in models.items()}
    theirs = None if reference is None else tokenizers[reference]
    for name, tokenizer in tokenizers.items():
        source = choose_template(tokenizer, theirs)
        if source != "student":
            which = "the default one" if source == "default" else f"that of {reference}"
            log(f"{name}: the model has no chat template; {which} is used")
    for what, other in compared.items():
        _check_pairs(tokenizers, what, other)
    distinct = {_fingerprint(tokenizer): tokenizer for tokenizer in tokenizers.values()}
    encoded: dict[str, list[list[EncodedQuestion]]] = {fingerprint: [] for fingerprint in distinct}
    kept_sets: list[EvaluationSet] = []
    facts: dict[str, DatasetFacts] = {}
    for data in sets:
        found = {key: encode_questions(data, each, max_length=longest) for key, each in distinct.items()}
        kept, reasons = _usable(data, list(found.values()))
        cut = 0
        for key, results in found.items():
            usable = [each for row in kept if isinstance(each := results[row], EncodedQuestion)]
            encoded[key].append(usable)
            cut = max(cut, sum("truncated" in each.answered.notes for each in usable))
        kept_sets.append(replace(data, questions=tuple(data.questions[row] for row in kept)))
        facts[data.name] = DatasetFacts(data.role, data.part, dict(reasons.most_common()), cut)
        limit = min(longest, data.max_length or longest)
        log(
            f"{data.name}: {len(kept):,} {data.part} rows ({data.role})"
            + (f", {reasons.total():,} left out" if reasons else "")
            + (f", {cut:,} cut to {limit:,} tokens" if cut else "")
        )
    return CommonRows(kept_sets, facts, longest, tokenizers, encoded)


def _usable(
    data: EvaluationSet, results: Sequence[Sequence[EncodedQuestion | Dropped]]
) -> tuple[list[int], Counter[str]]:
    """The rows that no tokenizer refuses, and the reasons for the others. Raises InputError where none is left."""
    reasons: Counter[str] = Counter()
    kept: list[int] = []
    for row, of_row in enumerate(zip(*results, strict=True)):
        dropped = next((each for each in of_row if isinstance(each, Dropped)), None)
        if dropped is None:
            kept.append(row)
        else:
            reasons[dropped.reason] += 1
    if not kept:
        listed = "; ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        raise InputError(
            f"data {data.name}: none of its {len(data.questions):,} {data.part} rows can be evaluated: {listed}; mend "
            "the rows, or raise max_length"
        )
    return kept, reasons


def _check_pairs(tokenizers: Mapping[str, PreTrainedTokenizerBase], what: str, other: str) -> None:
    for name, tokenizer in tokenizers.items():
        try:
            same_tokenizer(tokenizer, tokenizers[other])
        except InputError as error:
            raise InputError(
                f"models.{name}: its tokenizer is not that of the {what} {other}, and KL compares two models token by "
                f"token; evaluate models of one tokenizer together, or leave out `{what}`"
            ) from error


def _longest(models: Mapping[str, ModelSpec], max_length: int, log: Log) -> int:
    """`max_length`, or the shortest context among the models: all are given the same tokens."""
    longest = max_length
    for name, spec in models.items():
        config = check_model(spec).config
        text: dict[str, Any] = config.get("text_config") or {}
        context = config.get("max_position_embeddings") or text.get("max_position_embeddings")
        if isinstance(context, int) and context < longest:
            log(f"{name}: its context is {context:,} tokens, so all models are given rows of at most that many")
            longest = context
    return longest


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Tokenizers of one fingerprint turn every row into the same tokens, so that it is encoded once for all."""
    special = {key: str(token) for key, token in tokenizer.special_tokens_map.items()}
    backend: Any = tokenizer.backend_tokenizer
    return sha256_json([backend.to_str(), special, str(tokenizer.chat_template)])
