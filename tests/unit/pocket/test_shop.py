"""The pocket study's shop: right answers by its own rules, facts known from training, rows the students can read."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from preceptor.pocket.shop import CATALOGUE, RETURN_DAYS, SHOP, make_shop_rows
from preceptor.pocket.tasks import TASKS, make_rows, split_of
from preceptor.pocket.tokenizer import build_tokenizer


def prompts_and_answers(split: str, rows: int, seed: int) -> dict[str, list[tuple[str, str]]]:
    """{kind: [(prompt, answer)]}"""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in make_shop_rows(split, rows, seed):  # type: ignore[arg-type]
        user, assistant = row["messages"]
        assert (user["role"], assistant["role"], row["metric"]) == ("user", "assistant", "exact")
        found[row["task"]].append((user["content"], assistant["content"]))
    return found


def product_in(prompt: str) -> str:
    (name,) = set(prompt.split()) & set(CATALOGUE)
    return name


def solve(kind: str, prompt: str) -> str:
    """The right answer worked out from the prompt alone, by the shop's rules written down once more."""
    words = prompt.split()
    if kind in ("price", "shelf"):
        return str(getattr(CATALOGUE[product_in(prompt)], kind))
    if kind == "sku":
        size, colour, item = [word for word in words if word not in ("sku", "of", "code")]
        return item[0] + item[1] + colour[-1] + str(1 + ["small", "mid", "large", "giant"].index(size))
    if kind == "returns":
        days = int(words[-1])
        condition, item = words[-4], words[-3]
        kinds = {
            "clothes": "shirt scarf coat glove",
            "electric": "lamp radio kettle clock",
            "home": "bowl chair rug vase",
        }
        (category,) = [name for name, items in kinds.items() if item in items.split()]
        allowed = RETURN_DAYS[category, condition]
        return f"no {allowed}" if days > allowed else f"yes {allowed}"
    if kind == "extract":
        count, *qualities, item = words
        (fabric,) = set(qualities) & {"silk", "felt", "denim", "linen", "tweed"}
        (size,) = set(qualities) & {"small", "mid", "large", "giant"}
        (colour,) = set(qualities) - {fabric, size}
        return f"{item} {fabric[0]}{colour[0]}{['small', 'mid', 'large', 'giant'].index(size) + 1} x{count}"
    if kind == "dispatch":
        a, _, c, d = words[-1]
        depot = {"0": "delta", "2": "delta", "1": "forge", "5": "forge", "3": "haven", "7": "haven"}
        depot |= {"4": "mill", "8": "mill", "6": "quay", "9": "quay"}
        return f"{depot[a]} {d}{c}"
    if kind == "discount":
        (count,) = (int(word) for word in words if word.isdigit())
        (member,) = set(words) & {"guest", "silver", "gold", "staff"}
        return str({"guest": 0, "silver": 5, "gold": 15, "staff": 30}[member] + (0 if count < 5 else 10))
    raise AssertionError(f"no solver for {kind}")


def test_there_are_at_least_six_kinds_in_equal_shares() -> None:
    counts = Counter(row["task"] for row in make_shop_rows("train", 50 * len(SHOP) + 3, seed=3))
    assert len(counts) == len(SHOP) >= 6
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_is_the_one_right_answer(split: str) -> None:
    for kind, pairs in prompts_and_answers(split, 1600, seed=5).items():
        for prompt, answer in pairs:
            assert answer == solve(kind, prompt), prompt


def test_one_prompt_has_one_answer_and_one_kind() -> None:
    answers: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for seed in (1, 2):
        for kind, pairs in prompts_and_answers("train", 4000, seed).items():
            for prompt, answer in pairs:
                answers[prompt].add((kind, answer))
    assert all(len(found) == 1 for found in answers.values())


def test_train_and_test_prompts_are_disjoint_for_any_seeds() -> None:
    train = {row["messages"][0]["content"] for seed in range(3) for row in make_shop_rows("train", 4000, seed)}
    test = {row["messages"][0]["content"] for seed in range(3) for row in make_shop_rows("test", 320, seed)}
    assert not train & test
    assert {split_of(prompt) for prompt in test} == {"test"}
    # No prompt of the shop is an instruction of the general set, which would then have two right answers.
    general = {row["messages"][0]["content"].split()[0] for row in make_rows("train", 1200, seed=0)}
    assert not {prompt.split()[0] for prompt in train | test} & general
    assert not set(SHOP) & set(TASKS)


@pytest.mark.parametrize("seed", range(43, 48))
def test_the_facts_asked_in_the_test_were_taught_in_other_words(seed: int) -> None:
    train, test = prompts_and_answers("train", 4000, seed), prompts_and_answers("test", 320, seed)
    for kind in ("price", "shelf"):
        taught = Counter(product_in(prompt) for prompt, _ in train[kind])
        assert min(taught[product_in(prompt)] for prompt, _ in test[kind]) >= 5
        assert not {prompt for prompt, _ in train[kind]} & {prompt for prompt, _ in test[kind]}


def test_return_rules_are_answered_yes_as_often_as_no() -> None:
    answers = Counter(answer.split()[0] for _, answer in prompts_and_answers("train", 4000, seed=7)["returns"])
    assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_rows_are_read_without_unknown_characters_and_are_no_longer_than_the_general_ones() -> None:
    tokenizer = build_tokenizer()
    for row in make_shop_rows("train", 4000, seed=11):
        ids = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=True)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        # A longer domain row would lengthen every batch of a mixture.
        assert len(ids) <= 41


def test_the_same_seed_gives_the_same_rows_and_another_gives_others() -> None:
    assert make_shop_rows("train", 200, 1) == make_shop_rows("train", 200, 1) != make_shop_rows("train", 200, 2)
