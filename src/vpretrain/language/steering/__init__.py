"""What shapes the next-token task: designers, the rules they follow, and the arms that recipes
name.
"""
