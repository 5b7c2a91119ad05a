"""Tables: read, typed by column, encoded for a network."""
