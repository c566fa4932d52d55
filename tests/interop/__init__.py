"""Real MCP clients, each put through the same behaviours with nothing but an address and a token."""
