"""`imgproc-attn attack` from a checkout: `python robustness/evaluate_attacks.py --help`."""

import sys

from imgproc_attn.cli import main

if __name__ == "__main__":
    main(["attack", *sys.argv[1:]])
