"""The public conformance suite of MCP, run against MCP servers directly and through the bridge."""
