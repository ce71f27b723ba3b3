"""A local model as an answerer: batches of conversations on any device, each answered as it would be alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from preceptor.evaluation.chat_prompts import ChatPrompts
from preceptor.evaluation.chats import Advance, Answer, ChatRequest
from preceptor.evaluation.measure import by_length
from preceptor.models.load import load_model
from preceptor.models.sampling import check_can_sample, row_uniforms, sample_as_done, stop_tokens
from preceptor.models.tokenizers import check_tokenizer_fits, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from preceptor.recipe import ModelSpec

Log = Callable[[str], None]


class LocalAnswerer:
    """Answers with a transformers model, `batch_size` conversations at once, those with the longest prompt first.

    Every request draws from a random stream of its own, so that its answer is the same in any batch, and a request that
    is answered leaves the batch. An answer ends at an end token, after `max_new_tokens`, or where prompt and answer
    fill the context; `ChatPrompts` says how a conversation becomes a prompt.

    Args:
        model: frozen, on its device.
        tokenizer: the model's; it is given a chat template where it has none.
        name: the model's name in files and logs.
        batch_size: changes speed and memory only.
        reference: the tokenizer whose chat template a model without one is given.
        log: takes one line.

    Raises:
        InputError: a tokenizer without an end token, or a model with a recurrent state.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        batch_size: int = 16,
        reference: PreTrainedTokenizerBase | None = None,
        log: Log = lambda line: None,
    ) -> None:
        check_can_sample(model)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.name, self.batch_size = name, batch_size
        self._prompts = ChatPrompts(tokenizer, context, name=name, reference=reference, log=log)
        self._model, self._tokenizer = model.eval(), tokenizer
        self._stop = stop_tokens(model, tokenizer)

    def answer(self, requests: Sequence[ChatRequest], progress: Advance) -> Iterator[tuple[int, Answer]]:
        """Answers as they are done, each with the index of its request.

        Raises:
            InputError: whatever `ChatPrompts` refuses, before anything is written.
            RuntimeError: logits that are not numbers.
        """
        prompts = [self._prompts(request.messages, request.max_new_tokens) for request in requests]
        progress(0, 0)
        tokenizer = self._tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        for batch in by_length([len(prompt.ids) for prompt in prompts], self.batch_size):
            ending = sample_as_done(
                self._model,
                [prompts[i].ids for i in batch],
                [row_uniforms(requests[i].seed, 0, prompts[i].allowed) for i in batch],
                stop=self._stop,
                temperature=[requests[i].temperature for i in batch],
                top_p=[requests[i].top_p for i in batch],
                pad_token_id=pad,
            )
            for row, written in ending:
                text = tokenizer.decode(written.tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                count = len(written.tokens)
                yield batch[row], Answer(str(text).strip(), written.finished, count, prompts[batch[row]].cut)
                progress(1, count)


def local_answerer(
    spec: ModelSpec,
    *,
    name: str,
    batch_size: int = 16,
    reference: ModelSpec | None = None,
    log: Log = lambda line: None,
) -> LocalAnswerer:
    """Loads a model that answers; see `LocalAnswerer`.

    Args:
        spec: with its path resolved.
        reference: the model whose chat template one without any is given.
        name, batch_size, log: as there.

    Raises:
        InputError: whatever loading refuses.
    """
    theirs = None if reference is None else load_tokenizer(reference)
    model, tokenizer = load_writer(spec, announce=log)
    return LocalAnswerer(model, tokenizer, name=name, batch_size=batch_size, reference=theirs, log=log)


def load_writer(spec: ModelSpec, *, announce: Log | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that is to write, frozen and on its device (a GPU where there is one), and its tokenizer.

    Raises:
        InputError: whatever loading refuses, and a model with a recurrent state.
    """
    tokenizer = load_tokenizer(spec, announce=announce)
    model = load_model(spec, role="teacher")
    check_tokenizer_fits(tokenizer, model)
    check_can_sample(model)
    if spec.device_map is None and torch.cuda.is_available():
        model = model.to("cuda")
    return model, tokenizer
