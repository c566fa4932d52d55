"""The MCP server: connections to it, and what only supergateway says.

Invariant: no exception of an HTTP client leaves this package.
"""
