"""Accuracy under the fast gradient sign method (FGSM), at three radii.

    python robustness/fgsm.py MODEL --pretrained --root PATH/val

Protocol
    Source          Goodfellow, Shlens and Szegedy 2015 (arXiv 1412.6572), equation in section 4
    Threat model    white box, untargeted; L-infinity ball around each image
    Normalization   inside the model: images are attacked in [0, 1], after resizing and cropping, and eps is in these units
    Radius eps      1/255, 2/255, 4/255
    Attack          one step of length eps along the sign of the gradient of the cross-entropy with the true label,
                    clipped to [0, 1]; no random start, no restarts
    Images          all images of the data, or a random subset of --limit N
    Report          clean accuracy; accuracy under attack per radius, of all images: an image counts if it is classified
                    correctly before and after; 95 % Wilson intervals; number of images and a hash of their names
    Checks          the sanity checks of `imgproc-attn attack`, on 64 images

FGSM is a weak attack. A model that withstands it is not robust for that; run pgd.py too.
"""

import argparse

from imgproc_attn import cli


def main() -> None:
    """Run the protocol."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s MODEL [key=value ...] --root PATH [--eps EPS ...] [options of `imgproc-attn attack`]",
        description=__doc__,
        epilog="Other options are those of `imgproc-attn attack`: --checkpoint, --data, --limit, --device, --output and more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--eps", nargs="+", default=["1/255", "2/255", "4/255"], metavar="EPS", help="radii, e.g. 4/255")
    args, rest = parser.parse_known_args()
    cli.main(["attack", "--attacks", "fgsm", "--eps", *args.eps, "--norm", "Linf", *rest])


if __name__ == "__main__":
    main()
