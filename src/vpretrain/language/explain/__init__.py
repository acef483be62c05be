"""What every token of a stream is worth, in figures and as a page."""
