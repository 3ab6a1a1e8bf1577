"""``python -m imgproc_attn``: the console command, as torchrun wants it."""

from .cli import main

if __name__ == "__main__":
    main()
