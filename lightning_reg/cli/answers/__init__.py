"""Error messages for invalid settings, in one sentence each."""
