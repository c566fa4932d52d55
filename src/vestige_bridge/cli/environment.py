"""The environment of a command: the variables of the process, and those of a file ``.env`` that it does not set.

Invariant: a file that cannot be read causes one sentence, not a traceback.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from vestige_bridge.errors import SettingsError


def read_environ(environ: Mapping[str, str], dotenv: Path) -> dict[str, str]:
    """Returns the variables of the process, and those of the file that it does not set.

    Parameters:
        environ: the variables of the process.
        dotenv: the file; one that does not exist, or a directory of that name, has no variables.

    Errors:
        SettingsError: the file cannot be read, or is not UTF-8.
    """
    if not dotenv.is_file():
        return dict(environ)
    try:
        text = dotenv.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError([_not_utf_8(dotenv)]) from error
    except OSError as error:
        raise SettingsError([f"{dotenv}: it cannot be read: {error.strerror}."]) from error
    # ASCII text in UTF-16 without a byte order mark is valid UTF-8 with NUL characters.
    if "\0" in text:
        raise SettingsError([_not_utf_8(dotenv)])
    values = dotenv_values(stream=io.StringIO(text))
    return {name: value for name, value in values.items() if value is not None} | dict(environ)


def _not_utf_8(dotenv: Path) -> str:
    return f"{dotenv}: it is not UTF-8; save it as UTF-8."
