"""`imgproc-attn report` from a checkout: `python robustness/compare.py --help`."""

import sys

from imgproc_attn.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
