"""Scikit-learn's digits as tensors, and models trained on them in seconds."""

import numpy as np
import seeding
import torch
from torch import Tensor, nn

from imgproc_attn.data import Digits

SMALL = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 2, "num_heads": 2}


def tensors(split: str) -> tuple[Tensor, Tensor]:
    """Images ``[n, 1, 8, 8]`` in [0, 1], and labels."""
    reader = Digits(split)
    pictures = [torch.tensor(np.asarray(picture), dtype=torch.float32)[None] / 255 for picture, _ in reader]
    return torch.stack(pictures), torch.tensor([label for _, label in reader])


def convolutions() -> nn.Module:
    """A small network of timm's none, and ours none."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 16, 3, 2), nn.GELU(), nn.Flatten(), nn.Linear(144, 10)
    )


def trained(model: nn.Module, epochs: int = 40) -> nn.Module:
    """On the training split."""
    seeding.seed()
    images, labels = tensors("train")
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(256):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()
