# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---
"""First steps in Python: a teacher, a student that learns from it, scores, a report, and the losses by themselves."""

# %% [markdown]
# # First steps with preceptor
#
# Everything here is made on the spot, on a CPU, without a network: data, a small teacher, a smaller student. Cells can
# be run one by one in Jupyter, VS Code or Colab (there, open this file with jupytext), or all at once with
# `python examples/first_steps.py`, in half a minute. What is written goes into the folder `first-steps`.

# %%
import json
import random
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import preceptor
from preceptor import Attention, Collator, Logits, ModelTeacher, NextToken, Objective, TokenBatch, load_rows

folder = Path("first-steps")
folder.mkdir(exist_ok=True)

# %% [markdown]
# ## Data
#
# One conversation per line. The task is small enough to be learned in seconds: the last letter of a word.

# %%
letters = random.Random(43)
words = sorted({"".join(letters.choices("abcdefgh", k=4)) for _ in range(500)})
with (folder / "words.jsonl").open("w", encoding="utf-8") as file:
    for word in words:
        asked = {"role": "user", "content": f"last of {word}"}
        answer = {"role": "assistant", "content": word[-1]}
        file.write(json.dumps({"messages": [asked, answer]}) + "\n")

# %% [markdown]
# ## A recipe
#
# A recipe is data, and stages in the order in which they run. Here the teacher is made as well; usually it is a model
# that you name. The student follows its predictions (`logits`) and its attention.

# %%
RECIPE = """
name: words
runs_dir: first-steps/runs
data:
  words: {path: words.jsonl, holdout: 60, metric: exact}
stages:
  blank:
    kind: init
    config: {model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 4}
    tokenizer: {train_on: words, vocab_size: 64, kind: characters}
  teacher:
    kind: sft
    model: stage:blank
    data: words
    rows_per_step: 32
    training: {max_steps: 100, learning_rate: 5.0e-3, per_device_train_batch_size: 32, logging_steps: 20}
  small:
    kind: init
    config: {model_type: llama, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4}
    tokenizer: stage:blank
  kd:
    kind: distill
    student: stage:small
    teacher: stage:teacher
    data: words
    objective: [{kind: logits}, {kind: attention}]
    rows_per_step: 32
    training: {max_steps: 120, learning_rate: 5.0e-3, per_device_train_batch_size: 32, logging_steps: 20}
  scores:
    kind: evaluate
    models: [stage:kd]
    reference: stage:teacher
    on: [words]
    max_new_tokens: 4
"""
(folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
recipe = preceptor.load_recipe(folder / "recipe.yaml", ["stages.kd.training.warmup_steps=10"])
print("stages:", ", ".join(recipe.stages))

# %% [markdown]
# `load_recipe` checks all of it and names every mistake at once. `run` does what is not yet done: call it again and it
# returns at once, change a key and it says what would have to be redone.

# %%
result = preceptor.run(recipe)
run = Path(result["directory"])
for name, stage in result["stages"].items():
    print(f"{name}: {stage['status']}, {stage['seconds']:.1f} s")

# %% [markdown]
# ## What came of it
#
# Exact match on the held-out words with its 95 % interval, and how far the student's distributions are from the
# teacher's.

# %%
scores = json.loads((run / "scores" / "scores.json").read_text(encoding="utf-8"))
for name, model in scores["models"].items():
    general, distance = model["general"], model["kl_reference"]
    print(
        f"{name}: {general['score']:.2f} right ({general['low']:.2f}–{general['high']:.2f}), "
        f"{distance['value']:.3f} nats from the teacher"
    )

# %% [markdown]
# The training log has one line per `logging_steps`, each loss by itself.

# %%
for line in (run / "kd" / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
    entry = json.loads(line)
    if "loss" in entry:
        print(f"step {entry['step']:3d}  logits {entry['logits']:.4f}  attention {entry['attention']:.4f}")

# %% [markdown]
# ## The student is an ordinary model

# %%
tokenizer = AutoTokenizer.from_pretrained(run / "kd" / "model")
student = AutoModelForCausalLM.from_pretrained(run / "kd" / "model", dtype=torch.float32)
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "last of fade"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = student.generate(**prompt, max_new_tokens=3, do_sample=False, pad_token_id=tokenizer.pad_token_id)
print("last of fade:", tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip())

# %% [markdown]
# ## The losses by themselves
#
# No recipe and no trainer: rows, a batch, a teacher, an objective. The losses are computed inside the student's
# forward, so neither logits nor attention maps of the batch are ever held. Each is a sum over target positions; you
# divide once.

# %%
teacher = ModelTeacher(AutoModelForCausalLM.from_pretrained(run / "teacher" / "model"))
rows = load_rows(str(folder / "words.jsonl"), tokenizer, max_length=64)
collate = Collator(tokenizer.pad_token_id, route_names=["rows"])
batch = TokenBatch.from_inputs(collate(rows[:16]))
objective = Objective([Logits(), Attention(weight=0.5), NextToken(weight=0.1)], route_names=["rows"])
objective.prepare(student, teacher)
with objective.listening():
    sums = objective(student, batch, teacher(batch, objective.needs))
    (sums.loss / batch.targets.count).backward()
for name, total in zip(objective.names, sums.sums_TK.sum(1).tolist()):
    print(f"{name}: {total / batch.targets.count:.4f} nats per target")
print("gradient norm:", f"{torch.nn.utils.get_total_norm([p.grad for p in student.parameters()]):.3f}")

# %% [markdown]
# ## The report
#
# One page with everything above and more; `preceptor report` writes it. In a notebook, show it with
# `IPython.display.HTML(page.read_text(encoding="utf-8"))`; else open it in a browser.

# %%
subprocess.run([sys.executable, "-m", "preceptor", "report", str(run)], check=True)
page = run / "report" / "report.html"
print("open", page)

# %% [markdown]
# Next: [your own data](../docs/howto/data.md), [your own domain](../docs/howto/domain.md).
