"""The owner of the published releases; documents and commands depend on whether there is one.

Invariant: while it is empty, no document and no command names a package, an image or a chart of a registry. Those names
are not registered yet: anyone could register one and run code on the reader's machine.
"""

from __future__ import annotations

from typing import Final

OWNER: Final = ""
"""The GitHub account that publishes the releases; empty until there is one. ``make published OWNER=…`` sets it."""
