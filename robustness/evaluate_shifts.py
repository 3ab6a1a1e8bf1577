"""`imgproc-attn shift` from a checkout: `python robustness/evaluate_shifts.py --help`."""

import sys

from imgproc_attn.cli import main

if __name__ == "__main__":
    main(["shift", *sys.argv[1:]])
