"""From files, or from nothing, to pictures and their crops."""
