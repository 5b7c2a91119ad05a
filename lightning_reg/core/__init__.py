"""The base of every technique: its lifetime, the optimizer step, and the one door to Lightning's private parts."""
