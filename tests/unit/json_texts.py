"""Hypothesis strategies for JSON in unusual spellings: white space, escapes, numbers, key order, repeated keys.

Hypothesis draws only a seed, and a random generator spells the texts: drawing each character would be far too slow.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from hypothesis import strategies as st

ID = "\ue000"
TOKEN = "\ue001"
"""Placeholders for an id and for a progress token; no generated text contains these characters."""

_NUMBERS = ["0", "-0", "1", "1.0", "1e0", "1E+2", "1e400", "-1e-400", "0.10", "9007199254740993", "9" * 5000]
_CHARACTERS = ["a", "Z", " ", "/", "{", "]", ",", ":", "\x7f", "\u00e9", "\u2028", "\ufeff", "\U0001f600"]
_ESCAPES = [r"\"", r"\\", r"\/", r"\b", r"\f", r"\n", r"\r", r"\t", r"\ud83d\ude00", r"\ud800", r"\u0000", r"\u00e9"]
_READ_KEYS = ["jsonrpc", "id", "method", "params", "name", "_meta", "progressToken", "requestId"]


class Speller:
    """Generates JSON texts in random spellings."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def space(self) -> str:
        """Returns white space or an empty string."""
        return self._random.choice(["", "", "", " ", "\n", "\t", "\r\n", " \r"])

    def number(self) -> str:
        """Returns a number in a random spelling."""
        digits = "".join(self._random.choices("0123456789", k=self._random.randint(0, 25)))
        whole = self._random.choice("123456789") + digits
        made = self._random.choice(["", "-"]) + whole + self._random.choice(["", f".{whole}", "e5", "E-3", ".0e+12"])
        return self._random.choice([*_NUMBERS, made, made, made])

    def string(self) -> str:
        """Returns a string of random characters and escapes."""
        return f'"{"".join(self._random.choices(_CHARACTERS + _ESCAPES, k=self._random.randint(0, 5)))}"'

    def spelled(self, text: str) -> str:
        """Returns the given string with each character as itself or as an escape."""
        return f'"{"".join(self._random.choice([character, character, _escaped(character)]) for character in text)}"'

    def id(self) -> str:
        """Returns an id or a progress token."""
        return self._random.choice([self.number, self.string])()

    def value(self, depth: int = 3) -> str:
        """Returns any value; it may contain keys that the bridge reads at other levels, also repeated."""
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
        """Returns an object with these already spelled keys and values in random order."""
        shuffled = self._random.sample(members, len(members))
        return self._enclosed("{}", [f"{key}{self.space()}:{self.space()}{value}" for key, value in shuffled])

    def members(self, named: Sequence[tuple[str, str]], *, repeat: bool = False) -> str:
        """Returns an object with these members and others with unknown keys.

        Parameters:
            named: the keys as plain text, and the values already spelled.
            repeat: whether an unknown key may be repeated.
        """
        unknown = [(f'"x{0 if repeat else index}"', self.value()) for index in range(self._random.randint(0, 2))]
        return self.object([*((self.spelled(name), value) for name, value in named), *unknown])

    def request(self) -> str:
        """Returns a request with placeholders for the id and for the progress token."""
        meta = self.members([("progressToken", TOKEN)], repeat=True)
        params = self.members([("_meta", meta), ("name", self.string()), ("arguments", self.value())], repeat=True)
        named = [("jsonrpc", '"2.0"'), ("id", ID), ("method", self.spelled("tools/call")), ("params", params)]
        return f"{self.space()}{self.members(named)}{self.space()}"

    def response(self) -> str:
        """Returns a response with a placeholder for the id."""
        content = self._random.choice(["result", "error"]), self.value()
        return self.members([("jsonrpc", self.spelled("2.0")), ("id", ID), content])

    def progress(self) -> str:
        """Returns a progress notification with a placeholder for the token."""
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
