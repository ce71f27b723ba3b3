"""Whether a GGUF file says what the model folder says that it was converted from.

    python scripts/gguf_check.py MODEL_FOLDER MODEL.gguf [--text "Once upon a time"]

Reads the file back with transformers (needs `gguf`) and runs it with llama.cpp (needs `llama-cpp-python`), and prints,
beside the folder's own: the same token ids or not, the largest difference between logits, and whether the greedy
continuations are equal. Which one is not installed is left out. docs/interoperability.md has what it printed.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--text", default="Once upon a time, there was a little girl named Lily. She had a red ball.")
    parser.add_argument("--new-tokens", type=int, default=40)
    asked = parser.parse_args()
    words = AutoTokenizer.from_pretrained(asked.folder)
    model = AutoModelForCausalLM.from_pretrained(asked.folder, dtype=torch.float32).eval()
    ids = words(asked.text)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
        written = model.generate(torch.tensor([ids]), max_new_tokens=asked.new_tokens, do_sample=False)[0, len(ids) :]
    found: dict[str, Any] = {"tokens": len(ids), "largest_logit": float(np.abs(logits).max())}
    found["transformers"] = {"version": version("transformers"), **_read_back(asked.gguf, asked.text, ids, logits)}
    if find_spec("llama_cpp") is not None:
        llama = _llama_cpp(asked.gguf, asked.text, ids, logits, written.tolist())
        found["llama_cpp"] = {"version": version("llama-cpp-python"), **llama}
    print(json.dumps(found, indent=2))


def _read_back(gguf: Path, text: str, ids: list[int], logits: Any) -> dict[str, Any]:
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    words = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    return {"same_tokens": words(text)["input_ids"] == ids, "logits_apart": float(np.abs(theirs - logits).max())}


def _llama_cpp(gguf: Path, text: str, ids: list[int], logits: Any, written: list[int]) -> dict[str, Any]:
    from llama_cpp import GGML_TYPE_F32, Llama

    # In float32 as the comparison is; llama.cpp keeps keys and values in float16 unless it is told otherwise.
    model = Llama(
        str(gguf), n_ctx=512, logits_all=True, verbose=False, n_threads=1, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32
    )
    theirs = model.tokenize(text.encode())
    model.eval(ids)
    apart = float(np.abs(np.asarray(model.scores[: len(ids)]) - logits).max())
    model.reset()
    said = []
    for token in model.generate(ids, temp=0.0, repeat_penalty=1.0):
        said.append(token)
        if len(said) == len(written):
            break
    return {"same_tokens": theirs == ids, "logits_apart": apart, "same_continuation": said == written}


if __name__ == "__main__":
    main()
