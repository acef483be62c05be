"""One run: the loop, its state, checkpoints, budget and the folder that it leaves."""
