import pytest
import torch
from torch import nn

from lightning_gen.layers.conditional import ConditionalBatchNorm2d, append_labels, check_labels


@pytest.fixture
def norm():
    torch.manual_seed(0)
    norm = ConditionalBatchNorm2d(4, 3).double()
    nn.init.normal_(norm.scale.weight, 1.0, 0.5)
    nn.init.normal_(norm.shift.weight)
    return norm


def test_it_starts_as_plain_batch_norm():
    torch.manual_seed(0)
    features, labels = torch.randn(6, 4, 3, 5), torch.tensor([0, 1, 2, 0, 1, 1])
    conditional, plain = ConditionalBatchNorm2d(4, 3), nn.BatchNorm2d(4)
    for _ in range(2):  # in training, then with running statistics
        torch.testing.assert_close(conditional(features, labels), plain(features))
        conditional.eval(), plain.eval()
    torch.testing.assert_close(conditional.running_var, plain.running_var)


@pytest.mark.parametrize("training", [True, False])
def test_each_class_has_its_own_affine_map_of_the_whole_batch_normed(norm, training):
    features, labels = 3 * torch.randn(7, 4, 3, 5).double() + 1, torch.tensor([0, 1, 2, 0, 1, 1, 0])
    plain = nn.BatchNorm2d(4, affine=False).double().train(training)
    normed = plain(features)
    result = norm.train(training)(features, labels)
    for k in range(3):
        expected = normed[labels == k] * norm.scale.weight[k].view(1, -1, 1, 1) + norm.shift.weight[k].view(1, -1, 1, 1)
        torch.testing.assert_close(result[labels == k], expected)


def test_a_class_that_does_not_occur_gets_no_gradient(norm):
    norm(torch.randn(4, 4, 2, 2).double(), torch.tensor([0, 2, 2, 0])).square().sum().backward()
    for embedding in (norm.scale, norm.shift):
        assert (embedding.weight.grad.abs().sum(dim=1) > 0).tolist() == [True, False, True]


def test_it_keeps_the_layout_and_the_precision_of_the_run():
    norm, labels = ConditionalBatchNorm2d(4, 3), torch.tensor([0, 1])
    features = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    result = norm(features, labels)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, norm(features.contiguous(), labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(features.bfloat16(), labels).dtype == torch.bfloat16


def test_one_hot_labels_go_behind_the_channels():
    labels = torch.tensor([2, 0])
    vectors = append_labels(torch.full((2, 1), 7.0), labels, 3)
    assert vectors.tolist() == [[7, 0, 0, 1], [7, 1, 0, 0]]
    maps = append_labels(torch.full((2, 1, 2, 3), 7.0), labels, 3)
    assert maps.shape == (2, 4, 2, 3)
    assert torch.equal(maps, vectors[:, :, None, None].expand(2, 4, 2, 3))
    assert append_labels(vectors, None, None) is vectors


def test_missing_and_unexpected_labels_are_named():
    with pytest.raises(ValueError, match=r"num_classes=3 and needs labels: int64 \[N\], each in 0 \.\.\. 2"):
        check_labels(None, 3)
    with pytest.raises(ValueError, match="has no classes"):
        check_labels(torch.zeros(2, dtype=torch.int64), None)
    with pytest.raises(ValueError, match="needs labels"):
        ConditionalBatchNorm2d(4, 3)(torch.randn(2, 4, 2, 2))
