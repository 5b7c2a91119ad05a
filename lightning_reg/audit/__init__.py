"""What regularizes a run, and what in it works against itself."""
