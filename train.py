"""Train, validate, test and predict from the command line: ``python train.py`` says how."""

from lightning_reg.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
