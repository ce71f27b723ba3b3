"""The pocket study's tokenizer: one token per character, and a chat template of three tokens.

Rows of the study are 15 to 35 tokens long. A template of words ("### Instruction: …") would double that, and with it
the demo's time, so a turn costs one special token here.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, ASSISTANT, UNKNOWN = "<pad>", "<s>", "</s>", "<|assistant|>", "<unk>"
SPECIAL_TOKENS = (PAD, BOS, EOS, ASSISTANT, UNKNOWN)
CHARACTERS = " abcdefghijklmnopqrstuvwxyz0123456789"

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""`<s>PROMPT<|assistant|>ANSWER</s>`; the answer and its end are the assistant's tokens."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the study: `SPECIAL_TOKENS`, then `CHARACTERS`, each one id; it adds no token of its own."""
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = Split(Regex("[\\s\\S]"), behavior="isolated")
    backend.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
