"""Reading files into rows, and rows into packed batches of tokens."""
