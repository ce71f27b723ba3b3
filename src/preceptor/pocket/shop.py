"""The pocket study's domain: one fictional shop, whose facts and conventions no general teacher can know.

Stage 2 of the paper needs a domain that is worth a training of its own: one on which the general models score nothing,
and which a small expert learns from a few thousand clean rows. So this shop has a closed world of facts (its
catalogue) and rules of its own (codes, returns, discounts, depots). Every fact is asked in many wordings; the sha256 of
the whole prompt decides its split, as for the general tasks, so a test prompt is a known fact in a wording not seen
with it, or a known rule on values not seen together.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from preceptor.pocket.tasks import Split, TaskRow, Tasks, make_rows


class Product(NamedTuple):
    """What the shop knows about one product."""

    price: int
    shelf: str


CATALOGUE = {
    "alda": Product(49, "c4"),
    "brimo": Product(85, "a7"),
    "cavi": Product(64, "b9"),
    "dorin": Product(93, "f8"),
    "fenta": Product(58, "a2"),
    "gomi": Product(39, "c9"),
    "halro": Product(67, "f4"),
    "kesta": Product(18, "d5"),
    "kolmi": Product(76, "c1"),
    "lumi": Product(34, "a6"),
    "marno": Product(53, "f2"),
    "melta": Product(82, "c7"),
    "pelvo": Product(25, "a4"),
    "quira": Product(61, "b1"),
    "ronta": Product(14, "d9"),
    "selvi": Product(78, "e3"),
}

OPENERS = ("", "hi ", "hello ", "please ", "again ", "sorry ")
PRICE = ("price of {}", "{} price", "what does {} cost", "how much is {}")
SHELF = ("shelf of {}", "{} shelf", "where is {}", "where do i find {}")

CATEGORY = {
    **dict.fromkeys(("shirt", "scarf", "coat", "glove"), "clothes"),
    **dict.fromkeys(("lamp", "radio", "kettle", "clock"), "electric"),
    **dict.fromkeys(("bowl", "chair", "rug", "vase"), "home"),
}
ITEMS = tuple(CATEGORY)
COLOURS = ("red", "blue", "green", "white", "pink", "amber", "olive", "coral")
FABRICS = ("silk", "felt", "denim", "linen", "tweed")
SIZES = {"small": "1", "mid": "2", "large": "3", "giant": "4"}

RETURN_DAYS = {
    ("clothes", "new"): 60,
    ("clothes", "used"): 30,
    ("electric", "new"): 28,
    ("electric", "used"): 8,
    ("home", "new"): 45,
    ("home", "used"): 15,
}
"""Days within which an article may be given back, by its category and condition."""

DEPOTS = ("delta", "forge", "delta", "haven", "mill", "forge", "quay", "haven", "mill", "quay")
"""The depot of an order, by the first digit of its number."""

MEMBER_DISCOUNT = {"guest": 0, "silver": 5, "gold": 15, "staff": 30}
"""Per cent, by membership."""
LARGE_ORDER, LARGE_ORDER_DISCOUNT = 5, 10
"""From how many articles on there is how much more, in per cent."""


def _asked(rng: random.Random, wordings: Sequence[str], name: str) -> str:
    return rng.choice(OPENERS) + rng.choice(wordings).format(name)


def _price(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(tuple(CATALOGUE))
    return _asked(rng, PRICE, name), str(CATALOGUE[name].price)


def _shelf(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(tuple(CATALOGUE))
    return _asked(rng, SHELF, name), CATALOGUE[name].shelf


def _sku(rng: random.Random) -> tuple[str, str]:
    """The shop's article code: two letters of the article, the colour's last letter, the size as a digit."""
    item, colour, size = rng.choice(ITEMS), rng.choice(COLOURS), rng.choice(tuple(SIZES))
    wording = rng.choice(("sku of {} {} {}", "code {} {} {}", "{} {} {} sku"))
    return wording.format(size, colour, item), item[:2] + colour[-1] + SIZES[size]


def _returns(rng: random.Random) -> tuple[str, str]:
    """Whether an article may still be given back, and the days its category and condition allow."""
    item, condition = rng.choice(ITEMS), rng.choice(("new", "used"))
    allowed = RETURN_DAYS[CATEGORY[item], condition]
    days = rng.randint(1, 2 * allowed)  # so that yes and no are equally frequent for every article
    wording = rng.choice(("return {} {} day {}", "give back {} {} day {}"))
    return wording.format(condition, item, days), f"{'yes' if days <= allowed else 'no'} {allowed}"


def _extract(rng: random.Random) -> tuple[str, str]:
    """A customer's wish in the shop's order of attributes."""
    item, colour, fabric = rng.choice(ITEMS[:4]), rng.choice(COLOURS), rng.choice(FABRICS)
    count, size = rng.randint(2, 9), rng.choice(tuple(SIZES))
    words = [colour, fabric, size]
    rng.shuffle(words)
    return f"{count} {' '.join(words)} {item}", f"{item} {fabric[0]}{colour[0]}{SIZES[size]} x{count}"


def _dispatch(rng: random.Random) -> tuple[str, str]:
    """The depot which packs an order, and its lane: the number's last two digits, swapped."""
    order = f"{rng.randint(0, 9999):04d}"
    wording = rng.choice(("dispatch {}", "depot for order {}"))
    return wording.format(order), f"{DEPOTS[int(order[0])]} {order[3]}{order[2]}"


def _discount(rng: random.Random) -> tuple[str, str]:
    """The discount for a number of articles and a membership, in per cent."""
    count, item, member = rng.randint(1, 9), rng.choice(ITEMS), rng.choice(tuple(MEMBER_DISCOUNT))
    wording = rng.choice(("discount {1} {2} {0}", "{0} buys {1} {2}", "offer {0} {1} {2}"))
    return wording.format(member, count, item), str(
        MEMBER_DISCOUNT[member] + (LARGE_ORDER_DISCOUNT if count >= LARGE_ORDER else 0)
    )


SHOP: Tasks = {
    "price": _price,
    "shelf": _shelf,
    "sku": _sku,
    "returns": _returns,
    "extract": _extract,
    "dispatch": _dispatch,
    "discount": _discount,
}
"""The shop's kinds."""


def make_shop_rows(split: Split, rows: int, seed: int) -> list[TaskRow]:
    """`rows` examples of the shop, its kinds in equal shares to one row; always clean. See `tasks.make_rows`."""
    return make_rows(split, rows, seed, tasks=SHOP)
