"""Access: authentication, tokens, permissions, and the record of a request."""
