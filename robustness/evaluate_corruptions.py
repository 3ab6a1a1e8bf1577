"""`imgproc-attn corrupt` from a checkout: `python robustness/evaluate_corruptions.py --help`."""

import sys

from imgproc_attn.cli import main

if __name__ == "__main__":
    main(["corrupt", *sys.argv[1:]])
