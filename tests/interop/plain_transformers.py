"""Loads finished models as somebody does who has transformers and PEFT and not this project; run as a process.

    python plain_transformers.py JOB.json OUT.safetensors

JOB: {"models": {name: folder}, "adapters": {name: [folder, base folder, working folder]}, "ids": [[...]], "chat":
[...]}. Prints what it found as JSON; the logits go to OUT.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline


def main() -> None:
    torch.set_num_threads(1)
    job = json.loads(Path(sys.argv[1]).read_text())
    logits: dict[str, torch.Tensor] = {}
    found: dict[str, Any] = {}
    ids = torch.tensor(job["ids"])
    for name, folder in job["models"].items():
        model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        model.eval()
        words = AutoTokenizer.from_pretrained(folder) if Path(folder, "tokenizer.json").exists() else None
        with torch.no_grad():
            logits[name] = model(ids).logits
        found[name] = {
            "kind": type(model).__name__,
            "dtype": str(model.dtype),
            "report": {key: sorted(map(str, value)) for key, value in report.items() if value},
            "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
            "generation": {"bos": model.generation_config.bos_token_id, "eos": model.generation_config.eos_token_id},
            "tokens": words and len(words),
        }
        if words is not None and words.chat_template:
            prompt = words.apply_chat_template(job["chat"], add_generation_prompt=True, return_tensors="pt")
            with torch.no_grad():
                answer = model.generate(**prompt, max_new_tokens=6, do_sample=False)
            found[name]["answer"] = answer[0, prompt["input_ids"].shape[1] :].tolist()
            talk = pipeline("text-generation", model=folder)
            answered = talk(job["chat"], generation_config=model.generation_config, max_new_tokens=6, do_sample=False)
            found[name]["piped"] = answered[0]["generated_text"][-1]
    for name, (folder, base, home) in job["adapters"].items():
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        os.chdir(home)
        auto = AutoPeftModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            logits[name] = adapted(ids).logits
            logits[f"{name}, found by PEFT"] = auto(ids).logits
            merged = adapted.merge_and_unload()
            logits[f"{name}, merged"] = merged(ids).logits
        found[name] = {"base": auto.peft_config["default"].base_model_name_or_path}
    save_file(logits, sys.argv[2])
    print(json.dumps({"found": found, "preceptor": "preceptor" in sys.modules}))


if __name__ == "__main__":
    main()
