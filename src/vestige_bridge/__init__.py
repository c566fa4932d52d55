"""An authenticating reverse proxy that lets any number of MCP clients share one Vestige."""


def __getattr__(name: str) -> str:
    """``__version__``, read on access: that takes longer than all other imports of a command."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import version  # noqa: PLC0415

    return version("vestige-bridge")
