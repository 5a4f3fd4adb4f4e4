"""The command ``metra`` as ``python -m torchrl_metra``."""

from torchrl_metra.recipes.command import main

if __name__ == "__main__":
    main()
