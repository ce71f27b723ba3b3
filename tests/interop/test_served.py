"""Our student behind `transformers serve`, asked through OpenAI's client."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from interop import shop
from preceptor import DistillationTrainer
from served import served

pytestmark = pytest.mark.slow


def test_a_served_student_answers_as_it_does_here(tmp_path: Path) -> None:
    for name, seed in (("s", 1), ("t", 2)):
        shop.write(tmp_path / name, seed=seed)
    made = DistillationTrainer(
        tmp_path / "s", shop.arguments(tmp_path), train_dataset=shop.messages(), teacher=tmp_path / "t"
    )
    made.train()
    student = tmp_path / "student"
    made.save_model(str(student))
    words, model = AutoTokenizer.from_pretrained(student), AutoModelForCausalLM.from_pretrained(student)
    chats = [[shop.turn("user", asked)] for asked, _ in shop.pairs(3)]
    expected = []
    for chat in chats:
        prompt = words.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
        with torch.no_grad():
            answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
        expected.append(words.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
    with served(student, tmp_path) as url:
        client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        replies = [
            client.chat.completions.create(model=str(student), messages=chat, max_tokens=8, temperature=0)  # type: ignore[arg-type]
            for chat in chats
        ]
    assert [reply.choices[0].message.content for reply in replies] == expected
    assert any(expected)
