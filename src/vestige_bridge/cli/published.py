"""Whether there are releases to install, and whose: the switch on which documents and commands depend.

Invariant: while it is empty, no document and no command names a package, an image or a chart of a registry. Nobody owns
those names yet: whoever registers one decides what runs on the reader's machine.
"""

from __future__ import annotations

from typing import Final

OWNER: Final = ""
"""The GitHub account that publishes the releases; empty until there is one. ``make published OWNER=…`` sets it."""
