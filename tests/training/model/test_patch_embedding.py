"""Patches embedded by a matrix product are those of the convolution, whose weights they are."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from modeling_moon import MoonModel
from processing_moon import MoonProcessor
from training.model.patch_embedding import MatrixPatches, patches_by_matrix


@pytest.mark.parametrize("bias", [True, False])
def test_the_product_and_its_gradients_are_those_of_the_convolution(bias):
    convolution = nn.Conv3d(3, 16, (2, 4, 4), stride=(2, 4, 4), bias=bias).double()
    product = copy.deepcopy(convolution)
    product.__class__ = MatrixPatches
    results = []
    for module in (convolution, product):
        patches = torch.randn(5, 3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        patches.requires_grad_()
        made = module(patches)
        made.square().sum().backward()
        results.append([made.detach(), patches.grad, *(weights.grad for weights in module.parameters())])
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backbone", ["qwen3_vl", "qwen2_5_vl"])
def test_every_backbone_has_one_and_a_model_keeps_its_weights_and_vectors(backbone, tiny_moon):
    folder = tiny_moon(backbone)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    model, processor = MoonModel.from_pretrained(folder).eval(), MoonProcessor.from_pretrained(folder)
    batch = processor(products=[{"title": "mug", "images": picture}], return_tensors="pt")
    with torch.inference_mode():
        before, names = model(**batch).embeddings, set(model.state_dict())
        assert patches_by_matrix(model) == 1
        after = model(**batch).embeddings
    assert set(model.state_dict()) == names
    torch.testing.assert_close(before, after, rtol=0, atol=1e-6)
    assert patches_by_matrix(model) == 0
