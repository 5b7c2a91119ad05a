"""Techniques that decide when and how long training runs."""
