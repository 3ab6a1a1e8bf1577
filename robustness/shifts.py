"""Accuracy on naturally shifted versions of ImageNet, without training on any of them.

    python robustness/shifts.py MODEL --pretrained --shifts PATH --imagenet-val PATH/val

Protocol
    Sources         ImageNet-A and -O (arXiv 1907.07174), ImageNet-R (2006.16241), ImageNet-Sketch (1905.13549), ImageNet-V2
                    (1902.10811, matched frequency), ReaL labels (2006.07159)
    Threat model    none: the images do not depend on the model
    Classes         A and R hold 200 classes each: the prediction is the largest of their 200 logits. Sketch and V2 hold all
                    1,000.
    Images          all images of each data set: A 7,500, R 30,000, Sketch 50,889, V2 10,000, O 2,000, validation 50,000; with
                    --limit N a random subset of each
    Normalization   the model's own resizing, cropping, mean and standard deviation, the same for all data sets
    Report          top-1 accuracy per data set with 95 % Wilson intervals; top-1 by ReaL labels on the validation set, over the
                    images that have one; for O the area under the precision-recall curve (AUPR) of telling its images from
                    the validation images of its 200 classes by a low largest probability
    Checks          the outputs of the model, as in `imgproc-attn shift`

The folder --shifts holds the data sets as their archives unpack: imagenet-a, imagenet-r, imagenet-o, sketch,
imagenetv2-matched-frequency-format-val. Those that are there are evaluated. O and ReaL labels need --imagenet-val.
"""

import argparse
from pathlib import Path

from imgproc_attn import cli

# option of `imgproc-attn shift`: the folder that the published archive unpacks to
FOLDERS = {
    "--imagenet-a": "imagenet-a",
    "--imagenet-r": "imagenet-r",
    "--imagenet-sketch": "sketch",
    "--imagenet-v2": "imagenetv2-matched-frequency-format-val",
    "--imagenet-o": "imagenet-o",
}


def main() -> None:
    """Run the protocol."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s MODEL [key=value ...] --shifts PATH [--imagenet-val PATH] [options of `imgproc-attn shift`]",
        description=__doc__,
        epilog="Other options are those of `imgproc-attn shift`: --checkpoint, --limit, --device, --output and more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--shifts", type=Path, required=True, metavar="PATH", help="folder that holds the data sets")
    parser.add_argument("--imagenet-val", type=Path, metavar="PATH", help="ImageNet's validation set in class folders")
    args, rest = parser.parse_known_args()
    there = {option: args.shifts / name for option, name in FOLDERS.items() if (args.shifts / name).is_dir()}
    if args.imagenet_val is None:
        if there.pop("--imagenet-o", None) is not None:
            print("ImageNet-O is left out: it needs --imagenet-val.")
    else:
        there["--imagenet-val"] = args.imagenet_val
    if not there:
        parser.error(f"--shifts must hold one of {', '.join(FOLDERS.values())}, got {args.shifts}. Unpack the archives there.")
    words = [word for option, folder in there.items() for word in (option, str(folder))]
    real = ["--real-labels"] if args.imagenet_val is not None else []
    cli.main(["shift", *real, *words, *rest])


if __name__ == "__main__":
    main()
