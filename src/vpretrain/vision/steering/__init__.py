"""What shapes the tasks of pictures: designers, the surfaces they act on, and the arms that recipes
name.
"""
