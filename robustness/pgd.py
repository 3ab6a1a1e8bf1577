"""Accuracy under projected gradient descent (PGD), at three radii.

    python robustness/pgd.py MODEL --pretrained --root PATH/val --limit 1000

Protocol
    Source          Madry et al. 2018 (arXiv 1706.06083), section 2.1
    Threat model    white box, untargeted; L-infinity ball around each image
    Normalization   inside the model: images are attacked in [0, 1], after resizing and cropping, and eps is in these units
    Radius eps      1/255, 2/255, 4/255
    Attack          20 steps of length 2.5 eps / 20 along the sign of the gradient of the cross-entropy with the true label,
                    projected to the ball and to [0, 1] after each step
    Restarts        1, from a point drawn uniformly in the ball; --restarts N for more
    Images          all images of the data, or a random subset of --limit N
    Report          clean accuracy; accuracy under attack per radius, of all images: an image counts if it is classified
                    correctly before, and at every point that the attack visits (Madry et al. look at the last point only,
                    which finds less); 95 % Wilson intervals; number of images and a hash of their names
    Checks          the sanity checks of `imgproc-attn attack`, on 64 images: among them PGD with 100 steps, a black box
                    attack, and finite differences

The papers on Twicing and Elliptical attention attack normalized tensors instead, where the same eps is about 4.4 times
weaker. For their numbers use `imgproc-attn attack --preset twicing-paper` or `--preset elliptical-paper`.
"""

import argparse

from imgproc_attn import cli


def main() -> None:
    """Run the protocol."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s MODEL [key=value ...] --root PATH [options below] [options of `imgproc-attn attack`]",
        description=__doc__,
        epilog="Other options are those of `imgproc-attn attack`: --checkpoint, --data, --limit, --device, --output and more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--eps", nargs="+", default=["1/255", "2/255", "4/255"], metavar="EPS", help="radii, e.g. 4/255")
    parser.add_argument("--steps", default="20", help="gradient steps per restart, each of length 2.5 eps / steps")
    parser.add_argument("--restarts", default="1", help="random starting points per image; the worst counts")
    args, rest = parser.parse_known_args()
    attack = ["--attacks", "pgd", "--eps", *args.eps, "--steps", args.steps, "--restarts", args.restarts]
    cli.main(["attack", *attack, "--norm", "Linf", *rest])


if __name__ == "__main__":
    main()
