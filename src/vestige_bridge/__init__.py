"""An authenticating reverse proxy that lets any number of MCP clients share one Vestige."""

from importlib.metadata import version

__version__ = version("vestige-bridge")
