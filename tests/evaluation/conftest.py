"""Models that the evaluations are asked about, and images."""

import pytest
import seeding
import timm
from digits import SMALL, trained
from evaluated import InDouble, save
from safetensors.torch import save_file

import imgproc_attn  # noqa: F401 - registers the models
from imgproc_attn.data import Digits, Images
from imgproc_attn.evaluation import NormalizedModel
from imgproc_attn.evaluation.samples import Samples


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Weights of a small filter model trained on digits, as the commands take them."""
    place = tmp_path_factory.mktemp("model")
    seeding.seed()
    model = trained(NormalizedModel(timm.create_model("nlm_vit_tiny", **SMALL), [0.5], [0.5])).model
    save_file(model.state_dict(), place / "weights.safetensors")
    seeding.seed(1)
    other = trained(NormalizedModel(timm.create_model("plain_vit_tiny", **SMALL), [0.5], [0.5])).model
    save_file(other.state_dict(), place / "plain.safetensors")
    return place


@pytest.fixture(scope="session")
def model(folder):
    model = timm.create_model("nlm_vit_tiny", **SMALL, checkpoint_path=str(folder / "weights.safetensors"))
    return NormalizedModel(model, [0.5], [0.5]).eval()


@pytest.fixture(scope="session")
def exact_model(model):
    return InDouble(model)


@pytest.fixture
def samples():
    return Samples(Images(Digits("test"), 10, channels=1))


@pytest.fixture(scope="session")
def imagenet_model(tmp_path_factory):
    """An untrained model of 1,000 classes: labels and logits are what is tested."""
    folder = tmp_path_factory.mktemp("imagenet")
    options = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
    weights = save(folder, "plain_vit_tiny", **options)
    given = [f"{k}={v}" for k, v in options.items()]
    common = [*given, "--checkpoint", weights, "--workers", 0, "--device", "cpu", "--input-size", 3, 32, 32, "--crop-pct", 1]
    return ["plain_vit_tiny", *common], timm.create_model("plain_vit_tiny", **options, checkpoint_path=str(weights)).eval()
