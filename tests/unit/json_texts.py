"""JSON as people and programs spell it: odd white space, escapes, number spellings, key order, repeated keys.

Hypothesis draws a seed and the texts are spelled from it: drawing each character would be far too slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from hypothesis import strategies as st

ID = "\ue000"
TOKEN = "\ue001"
"""Characters that no spelled text holds: a slot for an id, and one for a progress token."""

_NUMBERS = ["0", "-0", "1", "1.0", "1e0", "1E+2", "1e400", "-1e-400", "0.10", "9007199254740993", "9" * 5000]
_CHARACTERS = ["a", "Z", " ", "/", "{", "]", ",", ":", "\x7f", "\u00e9", "\u2028", "\ufeff", "\U0001f600"]
_ESCAPES = [r"\"", r"\\", r"\/", r"\b", r"\f", r"\n", r"\r", r"\t", r"\ud83d\ude00", r"\ud800", r"\u0000", r"\u00e9"]
_READ_KEYS = ["jsonrpc", "id", "method", "params", "name", "_meta", "progressToken", "requestId"]


class Speller:
    """Spells JSON at random."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def space(self) -> str:
        """White space, or none."""
        return self._random.choice(["", "", "", " ", "\n", "\t", "\r\n", " \r"])

    def number(self) -> str:
        """A number, spelled in any way."""
        digits = "".join(self._random.choices("0123456789", k=self._random.randint(0, 25)))
        whole = self._random.choice("123456789") + digits
        made = self._random.choice(["", "-"]) + whole + self._random.choice(["", f".{whole}", "e5", "E-3", ".0e+12"])
        return self._random.choice([*_NUMBERS, made, made, made])

    def string(self) -> str:
        """A string with characters and escapes in it."""
        return f'"{"".join(self._random.choices(_CHARACTERS + _ESCAPES, k=self._random.randint(0, 5)))}"'

    def spelled(self, text: str) -> str:
        """A given string, each character as itself or by an escape."""
        return f'"{"".join(self._random.choice([character, character, _escaped(character)]) for character in text)}"'

    def id(self) -> str:
        """An id or a progress token."""
        return self._random.choice([self.number, self.string])()

    def value(self, depth: int = 3) -> str:
        """Any value; what the bridge reads elsewhere may stand in it, also twice."""
        kind = self._random.randrange(5 if depth else 3)
        if kind == 0:
            return self._random.choice(["null", "true", "false"])
        if kind in (1, 2):
            return self.id()
        count = self._random.randint(0, 3)
        if kind == 3:
            return self._enclosed("[]", [self.value(depth - 1) for _ in range(count)])
        keys = [
            self._random.choice([self.string(), self.spelled(self._random.choice(_READ_KEYS))]) for _ in range(count)
        ]
        return self.object([(key, self.value(depth - 1)) for key in keys])

    def object(self, members: Sequence[tuple[str, str]]) -> str:
        """An object with these members, keys and values being spelled already, in any order."""
        shuffled = self._random.sample(members, len(members))
        return self._enclosed("{}", [f"{key}{self.space()}:{self.space()}{value}" for key, value in shuffled])

    def members(self, named: Sequence[tuple[str, str]], *, repeat: bool = False) -> str:
        """An object with some members by name, and others that the bridge does not know.

        Parameters:
            named: the keys as they read, and the values as they are spelled.
            repeat: whether an unknown key may be there twice.
        """
        unknown = [(f'"x{0 if repeat else index}"', self.value()) for index in range(self._random.randint(0, 2))]
        return self.object([*((self.spelled(name), value) for name, value in named), *unknown])

    def request(self) -> str:
        """A request with a slot for the id, and one for the progress token."""
        meta = self.members([("progressToken", TOKEN)], repeat=True)
        params = self.members([("_meta", meta), ("name", self.string()), ("arguments", self.value())], repeat=True)
        named = [("jsonrpc", '"2.0"'), ("id", ID), ("method", self.spelled("tools/call")), ("params", params)]
        return f"{self.space()}{self.members(named)}{self.space()}"

    def response(self) -> str:
        """A response with a slot for the id."""
        content = self._random.choice(["result", "error"]), self.value()
        return self.members([("jsonrpc", self.spelled("2.0")), ("id", ID), content])

    def progress(self) -> str:
        """A progress notification with a slot for the token."""
        params = self.members([("progressToken", TOKEN), ("progress", self.number())], repeat=True)
        return self.members([("jsonrpc", '"2.0"'), ("method", '"notifications/progress"'), ("params", params)])

    def _enclosed(self, brackets: str, elements: Sequence[str]) -> str:
        spaced = [f"{self.space()}{element}{self.space()}" for element in elements]
        return brackets[0] + (",".join(spaced) or self.space()) + brackets[1]


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}"


spellers = st.randoms(use_true_random=True).map(Speller)
ids = spellers.map(Speller.id)
values = spellers.map(Speller.value)
requests = spellers.map(Speller.request)
responses = spellers.map(Speller.response)
progress = spellers.map(Speller.progress)
