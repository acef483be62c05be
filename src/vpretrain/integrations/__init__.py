"""Where other trainers meet the core: each module needs the library that it is named after, and
nothing else does."""
