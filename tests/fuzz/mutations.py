"""Inputs near good ones, for hypothesis: seeds cut, repeated, spliced, and sprinkled with words that matter."""

from __future__ import annotations

from hypothesis import strategies as st

from fuzz.scaffold import Target

NASTY = (
    b"\x00", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\x1b[31m", b"\r", b"\n", b"\t", b'"', b"'",
    b"\\", b"\\ud800", b"../", b"NaN", b"1e999", b"9" * 5000, b"-", b"null", b"[" * 300, b"{", b"\xe2\x80\xae",
    b"\xc2\x85", b"$HOME", b"~", b"%s", b"{}",
)  # fmt: skip


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """A seed of the target after up to six mutations, or (rarely) any bytes."""
    words = st.sampled_from([*target.words, *NASTY])
    position = st.floats(0, 1, exclude_max=True)
    step = st.one_of(
        st.tuples(st.just("cut"), position, position),
        st.tuples(st.just("repeat"), position, position),
        st.tuples(st.just("insert"), position, words),
        st.tuples(st.just("replace"), position, words),
        st.tuples(st.just("flip"), position, st.integers(1, 255)),
        st.tuples(st.just("splice"), position, st.sampled_from(list(target.seeds))),
    )
    mutated = st.builds(_mutated, st.sampled_from(list(target.seeds)), st.lists(step, max_size=6))
    return st.one_of(mutated, mutated, mutated, st.binary(max_size=200))


def _mutated(seed: bytes, steps: list[tuple[str, float, object]]) -> bytes:
    data = seed
    for what, position, argument in steps:
        at = int(position * len(data))
        if what in ("cut", "repeat"):
            assert isinstance(argument, float)
            end = at + int(argument * min(len(data) - at, 64)) + 1
            data = data[:at] + data[end:] if what == "cut" else data[:end] + data[at:end] + data[end:]
        elif what == "flip":
            assert isinstance(argument, int)
            data = data[:at] + bytes([data[at] ^ argument]) + data[at + 1 :] if data else data
        else:
            assert isinstance(argument, bytes)
            keep = {"insert": data[at:], "replace": data[at + len(argument) :], "splice": b""}[what]
            other = argument[int(position * len(argument)) :] if what == "splice" else argument
            data = data[:at] + other + keep
    return data
