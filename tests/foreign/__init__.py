"""Projects that know nothing of us, and every callback attached to each."""
