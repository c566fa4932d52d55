"""Who may do what: authentication, tokens, permissions, and the record of a request."""
