"""``python -m vpretrain``, and ``torchrun -m vpretrain`` for several processes."""

from vpretrain.cli import main

if __name__ == "__main__":
    main()
