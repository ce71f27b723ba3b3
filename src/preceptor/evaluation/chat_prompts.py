"""From a conversation to the tokens a local model continues: its chat template, and what a prompt too long loses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2.exceptions import TemplateError

from preceptor.data.template import ChatTemplate, Message, choose_template
from preceptor.errors import InputError
from preceptor.models.checkpoint import check_model
from preceptor.models.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from preceptor.recipe import ModelSpec


class Prompt(NamedTuple):
    """The tokens to continue, how many new ones there may be, and how many the prompt lost at its beginning."""

    ids: list[int]
    allowed: int
    cut: int


class ChatPrompts:
    """Makes prompts for one model.

    The conversation is written by the model's chat template; a model without one is given the reference's, or else the
    default one, which is logged. A prompt that leaves less than a quarter of the context for the answer (or less than
    `max_new_tokens`, where that is less) loses its first tokens after the begin token, so that the newest turn is what
    remains, as in FastChat's server.

    Args:
        tokenizer: the model's; it is given the template where it has none.
        context: tokens of prompt and answer together; None is without limit.
        name: the model's name in messages.
        reference: the tokenizer whose template a model without one is given.
        log: takes one line.

    Raises:
        InputError: a tokenizer without an end token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        context: int | None,
        *,
        name: str,
        reference: PreTrainedTokenizerBase | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        source = choose_template(tokenizer, reference)
        if source != "student":
            which = "the default one" if source == "default" else "that of the reference"
            log(f"{name}: the model has no chat template; {which} is used")
        self._template = ChatTemplate(tokenizer)
        self._tokenizer, self._context, self._name = tokenizer, context, name

    def __call__(self, messages: Sequence[Message], max_new_tokens: int) -> Prompt:
        """The prompt of one conversation.

        Raises:
            InputError: a conversation the template refuses, or a `max_new_tokens` that is not below the context.
        """
        try:
            text = self._template.render(messages, add_generation_prompt=True)
        except TemplateError as error:
            turns = sum(message["role"] == "user" for message in messages)
            raise InputError(
                f"{self._name}: the model's chat template refuses a conversation of {turns} "
                f"{'turn' if turns == 1 else 'turns'} ({error}); give a model that was made for conversations, or mend "
                "its chat_template.jinja"
            ) from error
        # No word about prompts over the model's length: they are cut below, and counted.
        ids = list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if not ids:
            raise InputError(f"{self._name}: the model's chat template writes nothing; mend its chat_template.jinja")
        if self._context is None:
            return Prompt(ids, max_new_tokens, 0)
        if max_new_tokens >= self._context:
            raise InputError(
                f"{self._name}: `max_new_tokens` is {max_new_tokens:,}, but the model's context is {self._context:,} "
                f"tokens, prompt and answer together; set it below {self._context:,}, with room for the prompt"
            )
        longest = self._context - min(max_new_tokens, max(self._context // 4, 1))
        cut = max(len(ids) - longest, 0)
        if cut:
            begin = int(ids[0] == self._tokenizer.bos_token_id)
            ids = ids[:begin] + ids[begin + cut :]
        return Prompt(ids, min(max_new_tokens, self._context - len(ids)), cut)


def check_can_answer(spec: ModelSpec, *, name: str, turns: int, max_new_tokens: int) -> None:
    """Makes sure, before weights are read, that a model can be asked so many turns.

    Args:
        spec: with its path resolved.
        name: the model's name in messages.
        turns: questions in one conversation, 2 for MT-Bench and 1 for AlpacaEval.
        max_new_tokens: the limit of each answer.

    Raises:
        InputError: no tokenizer, a chat template that refuses such a conversation, or a limit beyond the context.
    """
    config = check_model(spec).config
    text: dict[str, Any] = config.get("text_config") or {}
    context = config.get("max_position_embeddings") or text.get("max_position_embeddings")
    prompts = ChatPrompts(load_tokenizer(spec), context if isinstance(context, int) else None, name=name)
    roles = ["user", *["assistant", "user"] * (turns - 1)]
    prompts([{"role": role, "content": "a"} for role in roles], max_new_tokens)
