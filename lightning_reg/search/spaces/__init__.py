"""Search spaces: those shipped as YAML, and their reader."""
