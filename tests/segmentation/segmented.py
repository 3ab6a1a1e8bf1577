"""What tests of segmentation share: small models, commands."""

import torch
from imgproc_attn.evaluation.assessment import Assessment, Place
from imgproc_attn.evaluation.subject import ModelSpec
from imgproc_attn.segmentation.source import PictureSource
from torch import nn

from imgproc_attn import cli

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}


class Pointwise(nn.Module):
    """Logits that depend on the pixel and on its place in the window: what blending must average."""

    def __init__(self, classes=5):
        super().__init__()
        self.mix = nn.Conv2d(3, classes, 1)

    def forward(self, x):
        rows = torch.arange(x.shape[-2]).view(1, 1, -1, 1) / x.shape[-2]
        return self.mix(x) * (1 + rows)


CPU = torch.device("cpu")

CLASSIFIER = {"num_classes": 6, "depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": 64}


def assessment(run, output, **options):
    """A run's model and its data; ``output`` may be None where nothing is written."""
    source = PictureSource("labeled", str(run.parent / "data"), "val", short_side=64, **options)
    return Assessment(ModelSpec(str(run)), source, Place(output or run.parent / "evaluated", CPU, batch_size=1, workers=0))


def command(*words):
    cli.main([str(word) for word in words])
