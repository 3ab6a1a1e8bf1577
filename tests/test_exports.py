"""Every registered family as ONNX and as an exported program, on photographs."""

import logging
import warnings

import onnxruntime
import pytest
import skimage.data
import timm
import torch
from reference import sharpened
from timm.data import create_transform, resolve_model_data_config
from torchvision.transforms.functional import to_pil_image

import imgproc_attn
from imgproc_attn.models import FAMILIES


def photographs(model):
    """An astronaut and a cat, as the model's own configuration prepares them."""
    transform = create_transform(**resolve_model_data_config(model))
    pictures = (skimage.data.astronaut(), skimage.data.chelsea())
    return torch.stack([transform(to_pil_image(picture)) for picture in pictures])


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_and_exported_program(family, tmp_path):
    torch.manual_seed(0)
    model = sharpened(timm.create_model(f"test_{family}"))
    x = photographs(model)
    assert max(w.amax() for w in model.attention_weights(x).values()) > 0.5
    with torch.no_grad():
        expected = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        program = torch.export.export(model, (x,))
        file = str(tmp_path / "model.onnx")
        torch.onnx.export(program, dynamo=True, verbose=False).save(file)
        logging.disable(logging.NOTSET)
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-5)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), expected, rtol=1e-4, atol=1e-4)


def test_a_converted_model_exports_too():
    model = imgproc_attn.from_timm(
        timm.create_model("test_vit"), positions=["rotary", "alibi"], residual="pid", stream="sos"
    ).eval()
    x = torch.randn(2, 3, *model.patch_embed.img_size)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    y = torch.randn(5, 3, *model.patch_embed.img_size)
    torch.testing.assert_close(program.module()(y), model(y), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bilateral_vit", "neutreno_vit"])  # timm's contract has the others
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")  # torch would have everybody leave
def test_torchscript(family, tmp_path):
    torch.manual_seed(0)
    model = sharpened(timm.create_model(f"test_{family}"))
    x, file = photographs(model), str(tmp_path / "model.pt")
    torch.jit.script(model).save(file)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(model, x)(x), model(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.jit.load(file)(x), model(x), rtol=1e-4, atol=1e-5)
