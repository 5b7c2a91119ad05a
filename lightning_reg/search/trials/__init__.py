"""The trials of a search: proposed, stored, done."""
