"""What shapes the next-token task: designers, the rules they follow, and their declarations.

Recipes know what is declared in any file of this folder.
"""
