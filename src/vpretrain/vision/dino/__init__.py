"""DINO: student, teacher, head and loss."""
