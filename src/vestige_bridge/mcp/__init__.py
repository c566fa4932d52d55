"""The protocol: methods, versions, both eras, and whose a message is. No I/O."""
