"""What tests of segmentation share: small models, sessions, commands."""

import torch
from torch import nn

from imgproc_attn import cli
from imgproc_attn.evaluation.session import EvaluationSession, Runtime
from imgproc_attn.evaluation.specs import DatasetSpec, ModelSpec
from imgproc_attn.tasks import SegmentationTask

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


def session_of(run, output=None, **options):
    """Return a session of a run's model, and the samples of its data."""
    session = EvaluationSession.open(
        ModelSpec(str(run)),
        lambda model: SegmentationTask.for_model(model, short_side=64, **options),
        Runtime(CPU, batch_size=1, output=output),
    )
    return session, session.samples(DatasetSpec("labeled", str(run.parent / "data"), "val"))


def first_batch(session, samples):
    """Return the first batch of a session's samples."""
    return next(samples.batches(session.preprocessing, 1, 0, CPU))


def command(*words):
    cli.main([str(word) for word in words])
