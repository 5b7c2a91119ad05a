"""Output of a run: in the terminal and in its folder."""
