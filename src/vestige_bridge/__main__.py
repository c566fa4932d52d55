"""The command line: arguments and environment in, exit status out."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap

from dotenv import dotenv_values

from vestige_bridge import __version__
from vestige_bridge.errors import SettingsError
from vestige_bridge.settings import Settings, describe


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit status: 0; 1 when the bridge could not serve or the doctor found something; 2 for mistakes in the
        arguments or the settings.
    """
    options = _parser().parse_args(arguments)
    environ = {**_dotenv(), **os.environ}
    # A command imports what it needs: a health check, run every few seconds, has no use for the server.
    if options.command == "doctor":
        from vestige_bridge import doctor  # noqa: PLC0415

        return doctor.run(environ, quiet=options.quiet)
    from vestige_bridge import server  # noqa: PLC0415

    try:
        return server.serve(Settings.from_environ(environ))
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2


def _dotenv() -> dict[str, str]:
    """The variables of the file ``.env`` in the working directory, if there is one."""
    return {name: value for name, value in dotenv_values(".env").items() if value is not None}


def _parser() -> argparse.ArgumentParser:
    lines = []
    for variable, default, help_text in describe():
        lines.append(f"  {variable} (default: {default or 'none'})")
        lines.append(textwrap.fill(help_text, 78, initial_indent="      ", subsequent_indent="      "))
    parser = argparse.ArgumentParser(
        prog="vestige-bridge",
        description="An authenticating reverse proxy that lets any number of MCP clients share one Vestige.",
        epilog="Settings come from the environment, then from a file .env:\n\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("serve", help="run the bridge (the default)")
    doctor = commands.add_parser("doctor", help="walk from the settings to Vestige and name what fails")
    doctor.add_argument("--quiet", action="store_true", help="one deep health check, told by the exit status alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
