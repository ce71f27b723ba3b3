"""What interoperability is tested with: small checkpoints that chat, and the same rows in every public form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sources
import toys
from preceptor.models.save import save_model

WORDS = ("tea", "bread", "beer", "cake", "egg", "fig", "cod", "ham", "pie", "rice")
LETTERS = "user: assistant\n" + "".join(WORDS) + " what costs0123456789?"
# As published templates have it: the begin token, an end token behind each answer, and the answers marked.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}assistant: {% generation %}"
    "{{ message.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ message.role }}: {{ message.content }}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer(template: str | None = TEMPLATE) -> Any:
    made = sources.tokenizer_of(LETTERS)
    made.chat_template = template
    return made


def write(folder: Path, kind: str = "llama", seed: int = 0, *, template: str | None = TEMPLATE, **changes: Any) -> str:
    """A checkpoint with its tokenizer; returns the folder."""
    words = tokenizer(template)
    ids = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": None}
    dtype = changes.pop("dtype", sources.torch.float32)
    made = sources.model_of(kind, seed, **{"vocab_size": len(words), **ids, **changes})
    save_model(made, words, folder, dtype=dtype)
    return str(folder)


def pairs(count: int = 10) -> list[tuple[str, str]]:
    return [(f"what costs {WORDS[i % 10]}?", f"{WORDS[i % 10]} costs {i * 37 % 101}") for i in range(count)]


def messages(count: int = 10) -> list[dict[str, Any]]:
    return [{"messages": [turn("user", asked), turn("assistant", said)]} for asked, said in pairs(count)]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


FORMS: dict[str, list[dict[str, Any]]] = {
    "messages": [
        *messages(8),
        {"messages": [turn("system", "rice"), turn("user", "egg?"), turn("assistant", "7"), turn("user", "fig?"),
                      turn("assistant", "8 8")]},
    ],
    "prompt/completion": [
        {"prompt": [turn("user", asked)], "completion": [turn("assistant", said)]} for asked, said in pairs()
    ],
    "conversations": [
        {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]}
        for asked, said in pairs()
    ],
    "text": [{"text": said} for _, said in pairs()],
    "instruction/input/output": [
        {"instruction": "what costs", "input": asked, "output": said} for asked, said in pairs()
    ],
}  # fmt: skip


def arguments(folder: Path, **changes: Any) -> Any:
    """4 rows per step, 3 steps per epoch."""
    settings: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "seed": 5,
    }
    return toys.training_arguments(**{**settings, **changes})
