"""What a bad setting is answered with: one sentence."""
