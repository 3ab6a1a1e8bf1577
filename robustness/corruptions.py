"""Accuracy on the common corruptions of ImageNet-C, or of CIFAR-10-C.

    python robustness/corruptions.py MODEL --pretrained --root PATH/ImageNet-C
    python robustness/corruptions.py MODEL --pretrained --root PATH/val --generate --frost-folder PATH

Protocol
    Source          Hendrycks and Dietterich 2019 (arXiv 1903.12261)
    Threat model    none: the corruptions do not depend on the model
    Corruptions     the 15 of the benchmark (noise, blur, weather, digital), and the 4 extra ones where the files are there,
                    at severities 1 to 5
    Images          by default the published files, all of them: 50,000 images per corruption and severity in ImageNet-C,
                    10,000 in CIFAR-10-C; with --limit N a random subset
    Normalization   the model's own mean and standard deviation; published files of the model's size are not resized or
                    cropped again
    Report          accuracy per corruption and severity, with 95 % Wilson intervals; the mean accuracy and mean error of the 15
                    corruptions; mCE, the mean over the 15 of the error divided by AlexNet's (ImageNet models). A mean
                    is reported only if all 15 corruptions are there at all 5 severities.
    Checks          the outputs of the model, as in `imgproc-attn corrupt`

With --generate the corruptions are computed from clean images by the authors' definitions, and clean accuracy is reported
too. They are not compressed as JPEG, as the published files are, so do not compare their means with published ones. Frost
needs the authors' photographs (--frost-folder); without them it is left out, and so are the means of the 15.
"""

import argparse

from imgproc_attn import cli


def main() -> None:
    """Run the protocol."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s MODEL [key=value ...] --root PATH [--generate] [options of `imgproc-attn corrupt`]",
        description=__doc__,
        epilog="Other options are those of `imgproc-attn corrupt`: --checkpoint, --data, --limit, --device, --output and more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--generate", action="store_true", help="corrupt the clean images of --root")
    args, rest = parser.parse_known_args()
    images = ["--corruptions", "all"] if args.generate else ["--files"]
    cli.main(["corrupt", *images, "--severities", "1", "2", "3", "4", "5", "--seed", "0", *rest])


if __name__ == "__main__":
    main()
