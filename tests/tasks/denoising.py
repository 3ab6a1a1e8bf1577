"""A third task, in few lines: restore noisy digits. Tests import it behind the ordinary commands (``--import denoising``)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, register_model
from timm.task import ClassificationTask as TimmTask
from torch import nn

from imgproc_attn.evaluation import PGD
from imgproc_attn.evaluation.attacks.base import TargetAttack
from imgproc_attn.evaluation.scoring import Metric
from imgproc_attn.tasks import Task, register_task


class Denoiser(nn.Sequential):
    """Three convolutions from an image to an image of the same size."""

    def __init__(self, in_chans=1, num_classes=10, pretrained_cfg=None, **kwargs):
        layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in ((in_chans, 16), (16, 16), (16, in_chans))]
        super().__init__(layers[0], nn.GELU(), layers[1], nn.GELU(), layers[2])
        self.in_chans, self.num_classes = in_chans, num_classes


@register_model
def tiny_denoiser(pretrained=False, **kwargs):
    kwargs["pretrained_cfg"] = kwargs.get("pretrained_cfg") or {"mean": (0.0,), "std": (1.0,)}
    return build_model_with_cfg(Denoiser, "tiny_denoiser", pretrained, **kwargs)


def squared_errors(outputs, targets):
    """``[B]`` mean squared errors."""
    return (outputs - targets).square().flatten(1).mean(1)


class DenoisingPGD(TargetAttack, PGD):
    def objective_at(self, step):
        return squared_errors

    @torch.no_grad()
    def quality(self, model, images, targets):
        return -squared_errors(model(images), targets)


class NoisyInputs(TimmTask):
    def forward(self, input, target):
        noisy = input + 0.2 * torch.randn_like(input) if self.training else input
        return super().forward(noisy, input)


@register_task("denoising")
@dataclass(frozen=True)
class DenoisingTask(Task):
    metrics = (Metric("psnr", "PSNR", "dB"),)
    attacks = {"pgd": ("PGD", lambda: DenoisingPGD)}

    @classmethod
    def from_recipe(cls, recipe):
        return cls()

    def output_shape(self, recipe):
        return tuple(recipe.data.input_size)

    def training_task(self, recipe, model, preprocessing, device):
        return NoisyInputs(model, F.mse_loss, device=device, verbose=False)

    def targets(self, images, labels):
        return images

    def score(self, model, images, targets):
        return {"psnr": -10 * squared_errors(model(images), targets).clamp_min(1e-10).log10()}

    def per_sample(self, results):
        return results.column("psnr")
