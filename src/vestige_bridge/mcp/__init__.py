"""The MCP protocol: methods, versions, both eras, and routing of messages to clients. No I/O."""
