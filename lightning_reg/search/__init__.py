"""Which regularizers a network needs, and how strong: the space, the search, what it hands over."""
