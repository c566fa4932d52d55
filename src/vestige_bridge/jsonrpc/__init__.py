"""JSON-RPC messages: parsing that keeps the original text, and construction. No I/O."""
