"""What shapes the tasks of pictures: designers, the surfaces they act on, and their declarations.

Recipes know what is declared in any file of this folder."""
