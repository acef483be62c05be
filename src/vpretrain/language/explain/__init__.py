"""The values of a stream's tokens, as figures and as a page."""
