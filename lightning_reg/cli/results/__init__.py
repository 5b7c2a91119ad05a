"""What a run leaves in the terminal and in its folder."""
