"""The anchors of the headings of a Markdown page, for the tests of links."""

from __future__ import annotations

import itertools
import re


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub gives the headings of a page.

    Parameters:
        text: the page.
    """
    found: set[str] = set()
    for heading in re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    ):
        anchor = re.sub(r"[^\w\- ]", "", re.sub(r"\]\(.*?\)", "", heading).lower()).strip().replace(" ", "-")
        numbered = (f"{anchor}-{number}" for number in itertools.count(1))
        found.add(anchor if anchor not in found else next(it for it in numbered if it not in found))
    return found
