"""From files to packed rows of tokens."""
