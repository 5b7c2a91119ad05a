"""An audit of what regularizes a run, and of techniques in it that work against each other."""
