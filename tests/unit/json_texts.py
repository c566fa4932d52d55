"""JSON as people and programs spell it: odd white space, escapes, number spellings, key order, repeated keys."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hypothesis import strategies as st

ID = "\ue000"
TOKEN = "\ue001"
"""Characters that no generated text holds: a slot for an id, and one for a progress token."""

spaces = st.text(" \t\r\n", max_size=2)
numbers = st.one_of(
    st.sampled_from(["0", "-0", "1", "1.0", "1e0", "1E+2", "1e400", "-1e-400", "0.10", "9007199254740993", "9" * 5000]),
    st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,5})?([eE][+-]?[0-9]{1,4})?", fullmatch=True),
)
_raw = st.characters(exclude_categories=["Cs"], exclude_characters=[ID, TOKEN, '"', "\\"], min_codepoint=0x20)
_escaped = st.one_of(
    st.sampled_from([r"\"", r"\\", r"\/", r"\b", r"\f", r"\n", r"\r", r"\t", r"\ud83d\ude00", r"\ud800", r"\u0000"]),
    st.from_regex(r"\\u[0-9a-fA-F]{4}", fullmatch=True),
)
strings = st.lists(_raw | _escaped, max_size=6).map(lambda pieces: f'"{"".join(pieces)}"')
ids = numbers | strings
keys = st.sampled_from(['"id"', '"name"', '"_meta"', '"progressToken"', '"params"']) | strings


def arrays(elements: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Spellings of arrays."""
    return st.tuples(spaces, st.lists(st.tuples(spaces, elements, spaces).map("".join), max_size=4)).map(
        lambda drawn: f"[{','.join(drawn[1]) or drawn[0]}]"
    )


def objects(members: Sequence[tuple[str, str]]) -> st.SearchStrategy[str]:
    """Spellings of an object with these members, keys and values being spelled already, in any order."""

    @st.composite
    def spell(draw: st.DrawFn) -> str:
        spelled = [
            f"{draw(spaces)}{key}{draw(spaces)}:{draw(spaces)}{value}{draw(spaces)}"
            for key, value in draw(st.permutations(members))
        ]
        return "{" + (",".join(spelled) or draw(spaces)) + "}"

    return spell()


def _any_object(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(st.tuples(keys, values), max_size=4).flatmap(objects)


values = st.recursive(
    st.sampled_from(["null", "true", "false"]) | numbers | strings,
    lambda inner: arrays(inner) | _any_object(inner),
    max_leaves=8,
)


def spellings(text: str) -> st.SearchStrategy[str]:
    """Ways to spell a string: each character as itself or by an escape."""
    characters = [
        st.sampled_from([character, f"\\u{ord(character):04x}", f"\\u{ord(character):04X}"]) for character in text
    ]
    return st.tuples(*characters).map(lambda pieces: f'"{"".join(pieces)}"')


@st.composite
def members(draw: st.DrawFn, named: Sequence[tuple[str, str]], *, repeat: bool = False) -> str:
    """Spellings of an object with some members by name, and others that the bridge does not know.

    Parameters:
        draw: how Hypothesis draws.
        named: the keys as they read, and the values as they are spelled.
        repeat: whether an unknown key may be there twice.
    """
    known = [(draw(spellings(name)), value) for name, value in named]
    unknown = [
        (json.dumps(f"x{0 if repeat else index}"), value)
        for index, value in enumerate(draw(st.lists(values, max_size=2)))
    ]
    return draw(objects([*known, *unknown]))


@st.composite
def requests(draw: st.DrawFn, *, with_token: bool = True) -> str:
    """Spellings of requests with a slot for the id, and one for the progress token."""
    meta = draw(members([("progressToken", TOKEN)] if with_token else [], repeat=True))
    named = [("_meta", meta), ("name", draw(strings))] if with_token else draw(st.sampled_from([[], [("_meta", meta)]]))
    params = draw(members([*named, ("arguments", draw(values))], repeat=True))
    request = draw(
        members(
            [
                ("jsonrpc", draw(spellings("2.0"))),
                ("id", ID),
                ("method", draw(spellings("tools/call"))),
                ("params", params),
            ]
        )
    )
    return f"{draw(spaces)}{request}{draw(spaces)}"


@st.composite
def responses(draw: st.DrawFn) -> str:
    """Spellings of responses with a slot for the id."""
    content = (draw(st.sampled_from(["result", "error"])), draw(values))
    return draw(members([("jsonrpc", '"2.0"'), ("id", ID), content]))


@st.composite
def progress(draw: st.DrawFn) -> str:
    """Spellings of progress notifications with a slot for the token."""
    params = draw(members([("progressToken", TOKEN), ("progress", draw(numbers))], repeat=True))
    return draw(members([("jsonrpc", '"2.0"'), ("method", '"notifications/progress"'), ("params", params)]))
