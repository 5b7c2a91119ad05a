"""What public Lightning projects do, re-created small: a kind a file, each with a dictionary ``PROJECTS``."""
