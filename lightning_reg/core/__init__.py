"""What every technique stands on: its lifetime, the optimizer step, and the one door to Lightning's private parts."""
