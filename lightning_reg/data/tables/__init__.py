"""Tables: reading, column types, encoding for a network."""
