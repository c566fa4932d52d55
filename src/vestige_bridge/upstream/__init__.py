"""The MCP server: connections to it, and behavior that is specific to supergateway.

Invariant: no exception of an HTTP client leaves this package.
"""
