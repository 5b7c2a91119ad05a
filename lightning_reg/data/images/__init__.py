"""Image data: sources, decoding, caching and splits."""
