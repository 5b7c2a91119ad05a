"""Terms of a loss, and inputs that raise it."""
