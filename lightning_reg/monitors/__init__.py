"""What watches a run and changes nothing; users import it from :mod:`lightning_reg.callbacks`."""
