"""Tokenizers: loading one, telling whether two are the same, and training one on given texts.

Distillation compares distributions token by token, so student and teacher must give every text the same
ids. What the vocabulary is called, how long a model's (padded) head is, and which token ends a turn do not
matter for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from preceptor.errors import InputError, first_sentence, shown
from preceptor.models.checkpoint import TOKENIZER_FILES, check_adapter, locate
from preceptor.system.files import sha256_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from preceptor.recipe import ModelSpec

CHAT_TEMPLATE = "chat_template.jinja"
BOS, EOS, PAD, UNKNOWN = "<s>", "</s>", "<pad>", "<unk>"

# Texts on which tokenizers with one vocabulary still differ: merges, normalisation, runs of spaces, digits,
# bytes.
_PROBES = (
    "Once upon a time, there was a little girl named Lily.",
    "  two leading spaces, a\ttab,\n\na blank line and   three",
    "In 1984 it cost $12,345.67 (about 3.5e-4 or 100%).",
    "def f(x):\n    return x**2  # ünïcödé",
    "Straße, naïve café, déjà vu — “quotes” … ﬁ Å e\u0301",
    "日本語 русский العربية हिन्दी 🙂👩\u200d👧",
    "DON'T they'll I'm WE'VE user@example.com https://example.com/a_b?c=d",
)


def load_tokenizer(spec: ModelSpec, *, announce: Callable[[str], None] | None = None) -> PreTrainedTokenizerBase:
    """Loads a model's tokenizer; that of its adapter's folder where there is one, with its template.

    The tokenizer returned has a padding token: its own, else the end token, which is safe because padding
    is masked everywhere. No token is ever added, so no embedding is ever resized.

    Raises:
        InputError: there is no tokenizer in the folder, it cannot be read, or it has nothing to pad with.
    """
    from transformers import AutoTokenizer

    from preceptor.models.load import quiet_transformers

    where = f"tokenizer of {spec.path!r}"
    base = folder = locate(spec.path, spec.revision, where=where)
    if spec.adapter is not None and _has_tokenizer(adapter := check_adapter(spec.adapter)):
        # Consent to run code is given to the model at `path`: where both have code, it is that model's that runs.
        folder = base if spec.trust_remote_code and _has_code(adapter) else adapter
    if not _has_tokenizer(folder) and not spec.trust_remote_code:
        raise InputError(
            f"{where}: the folder holds none (tokenizer.json is missing); copy the tokenizer's files beside the model"
        )
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=spec.trust_remote_code)
    except Exception as error:
        # The readers behind this call raise whatever they like (bare Exception from the Rust side,
        # KeyError, …).
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{where}: needs Python code that comes with the model; read that code, and if you trust it, "
                "set `trust_remote_code: true` for this model"
            ) from error
        raise InputError(f"{where}: could not be read ({first_sentence(error)}); copy its files again") from error
    if spec.adapter is not None and folder == base and (template := adapter / CHAT_TEMPLATE).is_file():
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    if len(tokenizer) == 0:
        raise InputError(f"{where}: has no tokens; copy the tokenizer's files beside the model")
    if tokenizer.pad_token_id is None:
        substitute = tokenizer.eos_token or tokenizer.unk_token or tokenizer.bos_token
        if substitute is None:
            raise InputError(f"{where}: has neither a padding nor an end token; set `pad_token` in its config")
        tokenizer.pad_token = substitute
        if announce is not None:
            announce(f"{where}: has no padding token; {substitute!r} is used for padding, which is masked")
    return tokenizer


def same_tokenizer(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Makes sure that both give every text the same token ids.

    Vocabularies are compared token by token, and then the ids of some awkward texts. Names, templates,
    special-token roles and the lengths of the models' heads may differ.

    Raises:
        InputError: naming the first id whose token differs, or a text that is cut differently.
    """
    mend = "distil between models of one tokenizer, or train the student from `init` with the teacher's"
    ours, theirs = _by_id(student), _by_id(teacher)
    if ours != theirs:
        first = min(i for i in ours.keys() | theirs.keys() if ours.get(i) != theirs.get(i))
        raise InputError(
            f"the student's tokenizer ({len(ours):,} tokens) is not the teacher's ({len(theirs):,} tokens): "
            f"token {first} is {_token(ours.get(first))} for the student and {_token(theirs.get(first))} "
            "for the "
            f"teacher; {mend}"
        )
    for text in _PROBES:
        if _ids(student, text) != _ids(teacher, text):
            raise InputError(
                "the student's tokenizer has the teacher's tokens but cuts text otherwise, "
                f"for example {shown(text, 40)}; {mend}"
            )


def tokenizer_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What must be equal for stored token ids to mean the same: a SHA-256 that `same_tokenizer` tokenizers share."""
    by_id = {str(index): token for index, token in _by_id(tokenizer).items()}
    return {"sha256": sha256_json([by_id, [_ids(tokenizer, text) for text in _PROBES]]), "tokens": len(by_id)}


def template_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The chat template that rows are rendered with, and its SHA-256."""
    template = str(tokenizer.chat_template)
    return {"sha256": sha256_json(template), "text": template}


def check_pair(pair: Sequence[ModelSpec]) -> None:
    """Makes sure, before weights are read, that a student and its teacher share a tokenizer; see `same_tokenizer`."""
    student, teacher = (load_tokenizer(spec) for spec in pair)
    same_tokenizer(student, teacher)


def check_tokenizer_fits(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Makes sure that every token has a row in the model's embedding (a padded, longer embedding is fine).

    Raises:
        InputError: naming both sizes.
    """
    rows = model.get_input_embeddings().num_embeddings
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise InputError(
            f"model {model.name_or_path!r}: its embedding has {rows:,} rows but its tokenizer has ids up to "
            f"{largest:,}; give the tokenizer that the model was trained with"
        )


def train_tokenizer(
    texts: Iterable[str],
    *,
    vocab_size: int,
    kind: Literal["bpe", "characters"],
    announce: Callable[[str], None],
    where: str = "tokenizer",
) -> PreTrainedTokenizerBase:
    """Trains a tokenizer of at most `vocab_size` tokens, special ones included; same texts, same tokenizer.

    `bpe` is byte-level, so every text round-trips. `characters` has one token per character seen, the most
    frequent first, and an unknown token for the rest. Both put the begin token before a text.

    Raises:
        InputError: no text at all, or a `vocab_size` too small for the kind.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = _train_bpe(texts, vocab_size, where) if kind == "bpe" else _characters(texts, vocab_size, announce, where)
    begin = backend.token_to_id(BOS)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, begin)]
    )
    named: dict[str, Any] = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    if kind == "characters":
        named["unk_token"] = UNKNOWN
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **named)


def _train_bpe(texts: Iterable[str], vocab_size: int, where: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    special = [BOS, EOS, PAD]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    least = len(special) + len(alphabet)
    if vocab_size < least:
        raise InputError(
            f"{where}: `vocab_size` is {vocab_size}, but a byte-level tokenizer has at least {least} tokens; "
            "raise it, or use `kind: characters`"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator(_some(texts, where), trainer)
    return backend


def _characters(texts: Iterable[str], vocab_size: int, announce: Callable[[str], None], where: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    special = [UNKNOWN, BOS, EOS, PAD]
    if vocab_size <= len(special):
        raise InputError(f"{where}: `vocab_size` is {vocab_size}, but the special tokens alone are {len(special)}")
    counts: Counter[str] = Counter()
    for text in _some(texts, where):
        counts.update(text)
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    kept = ordered[: vocab_size - len(special)]
    if dropped := ordered[len(kept) :]:
        lost = sum(counts[character] for character in dropped)
        announce(
            f"{where}: {len(dropped)} rare characters have no place in {vocab_size} tokens and become "
            f"{UNKNOWN} "
            f"({lost / counts.total():.2%} of the text)"
        )
    vocabulary = {token: i for i, token in enumerate([*special, *kept])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.add_special_tokens(special)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return backend


def _some(texts: Iterable[str], where: str) -> Iterator[str]:
    empty = True
    for text in texts:
        if text:
            empty = False
            yield text
    if empty:
        raise InputError(f"{where}: there is no text to train on; name a dataset that has rows")


def _has_tokenizer(folder: Path) -> bool:
    # transformers makes an empty tokenizer out of config.json alone, so the files have to be looked for.
    return any((folder / name).is_file() for name in TOKENIZER_FILES) or any(folder.glob("*.tiktoken"))


def _has_code(folder: Path) -> bool:
    """Whether a tokenizer's files name Python code beside them."""
    try:
        return "auto_map" in (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def _by_id(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _token(token: str | None) -> str:
    return "absent" if token is None else shown(token, 30)
