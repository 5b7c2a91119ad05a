"""What a search can try: the spaces that ship as YAML, and what reads them."""
