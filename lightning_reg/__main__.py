"""``python -m lightning_reg``: the command line."""

from lightning_reg.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
