"""What several networks are built from, against the formulas written out."""

from common.blocks import Block, channels_last, expand_like, turned_coordinates, waves, zeroed

import numpy as np
import pytest
import torch
import torch.nn.functional as F


@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 4, 4), (3, 2, 5)])
def test_one_number_per_sample_multiplies_every_shape(shape):
    x = torch.ones(shape)
    product = expand_like(torch.tensor([1.0, 2.0, 3.0]), x) * x
    assert product.shape == shape
    assert product.flatten(1).mean(1).tolist() == [1, 2, 3] and product.flatten(1).std(1).max() == 0


def test_waves_are_sines_and_cosines_whose_frequencies_grow_geometrically():
    v = torch.tensor([[0.0, 0.3], [-1.0, 2.0]])
    w = [0.5, 1, 2, 4, 8]
    expected = np.concatenate([f(np.multiply.outer(v.numpy(), w)) for f in (np.sin, np.cos)], -1)
    assert waves(v, 0.5, 8, 5).shape == (2, 2, 10)
    np.testing.assert_allclose(waves(v, 0.5, 8, 5), expected, atol=1e-5)


def test_channels_last_changes_the_layout_and_no_number():
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(channels_last(x), x)
    assert channels_last(x).is_contiguous(memory_format=torch.channels_last)


def test_what_ends_in_a_zeroed_layer_adds_nothing():
    layer = zeroed(torch.nn.Linear(3, 2))
    assert not layer(torch.randn(4, 3)).any() and layer.weight.requires_grad


def test_a_new_block_is_the_identity_and_a_trained_one_is_film_between_convolutions():
    torch.manual_seed(0)
    block = Block(8, d_emb=5)
    h = torch.randn(2, 8, 6, 6)
    emb = torch.randn(2, 5)
    assert torch.equal(block(h, emb), h)

    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.3)
    scale, shift = block.film(emb).view(2, 16, 1, 1).split(8, 1)
    inner = block.conv1(F.silu(F.group_norm(h, 4, block.norm1.weight, block.norm1.bias)))
    inner = F.group_norm(inner, 4, block.norm2.weight, block.norm2.bias) * (1 + scale) + shift
    expected = (h + block.conv2(F.silu(inner))).detach()
    np.testing.assert_allclose(block(h, emb).detach(), expected, rtol=1e-4, atol=1e-5)


def test_coordinates_are_the_centres_of_cells_turned_about_the_image_centre():
    theta = torch.tensor([0.0, 0.7])
    uv = turned_coordinates(theta, cells=6, size=4, unit=32)
    assert uv.shape == (2, 2, 6, 6)
    for row, column in ((0, 0), (2, 5), (3, 1)):
        x, y = (np.mean(range(4 * i, 4 * i + 4)) - 12 for i in (column, row))  # pixel i lies at i
        for n, angle in enumerate(theta.tolist()):
            u = x * np.cos(angle) + y * np.sin(angle)
            v = y * np.cos(angle) - x * np.sin(angle)
            np.testing.assert_allclose(uv[n, :, row, column], [u / 32, v / 32], atol=1e-6)

    own = turned_coordinates(theta, cells=6, size=4, unit=torch.tensor([16.0, 64.0]))
    assert torch.equal(own, torch.stack([2 * uv[0], uv[1] / 2]))
