import pytest
import torch

from lightning_gen.networks import CaptionEncoder, PictureEncoder
from lightning_gen.text import ByteTokenizer


def test_what_fills_up_says_nothing():
    torch.manual_seed(0)
    short, long = ByteTokenizer(length=12), ByteTokenizer(length=30)
    network = CaptionEncoder(long, 5, **CaptionEncoder.small)
    captions = ["a house", "two trees"]
    tokens = long(captions)
    expected = network(tokens)
    network.places.data[12:] += 1.0
    torch.testing.assert_close(network(tokens), expected)
    network.tokens.weight.data[0] += 1.0
    torch.testing.assert_close(network(tokens), expected)
    other = CaptionEncoder(short, 5, **CaptionEncoder.small)
    other.load_state_dict({**network.state_dict(), "places": network.places[:12]})
    torch.testing.assert_close(other(short(captions)), expected)


def test_order_and_every_token_count():
    torch.manual_seed(0)
    tokenizer = ByteTokenizer(length=12)
    network = CaptionEncoder(tokenizer, 5, **CaptionEncoder.small)
    found = network(tokenizer(["abc", "acb", "abd", "abcc"]))
    assert torch.cdist(found, found)[~torch.eye(4, dtype=torch.bool)].min() > 1e-4


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 28, 28), (3, 17, 40)])
def test_pictures_of_any_size_and_every_place(shape):
    network = PictureEncoder(shape, 6, **PictureEncoder.small)
    images = torch.rand(2, *shape, requires_grad=True)
    features = network(images)
    assert features.shape == (2, 6)
    features.square().sum().backward()
    assert (images.grad != 0).flatten(2).any(1).all()


def test_sizes_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"at least 8 x 8 pixels, got \[7, 9\]"):
        PictureEncoder((3, 7, 9), 4)
    with pytest.raises(ValueError, match="heads that divide the width; got 4, 10, 1 and 3"):
        CaptionEncoder(ByteTokenizer(), 4, width=10, depth=1, heads=3)
