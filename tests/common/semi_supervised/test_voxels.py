import pytest
import torch

from common.semi_supervised.voxels import draw_per_class, pick


def test_draw_per_class():
    labels = torch.tensor([2, 0, -1, 0, 2, 2, 0, 0, -1, 2])
    draw = torch.Generator().manual_seed(0)
    assert draw_per_class(labels, 3, 4, draw).tolist() == [1, 3, 6, 7, 0, 4, 5, 9]  # all there are
    seen = [draw_per_class(labels, 3, 2, draw).tolist() for _ in range(60)]
    assert {len(indices) for indices in seen} == {4}
    assert {i for indices in seen for i in indices[:2]} == {1, 3, 6, 7}
    assert {i for indices in seen for i in indices[2:]} == {0, 4, 5, 9}
    assert draw_per_class(torch.full((5,), -1), 3, 2, draw).shape == (0,)


@pytest.mark.parametrize("size", [(7,), (4, 5), (3, 2, 4)])
def test_rows_are_those_of_the_flattened_labels(size):
    """Each voxel's features tell image, channel and place."""
    count = torch.Size(size).numel()
    features = torch.arange(2 * 3 * count).reshape(2, 3, *size).float().requires_grad_()
    chosen = torch.tensor([0, 2 * count - 1, count, 3, 3])
    found = pick(features, chosen)
    for row, index in zip(found.tolist(), chosen.tolist(), strict=True):
        image, place = divmod(index, count)
        assert row == [image * 3 * count + channel * count + place for channel in range(3)]
    found.sum().backward()
    expected = torch.bincount(chosen, minlength=2 * count).reshape(2, 1, *size).expand(2, 3, *size)
    assert torch.equal(features.grad, expected.float())
    assert pick(features, chosen[:0]).shape == (0, 3)


def test_the_memory_format_does_not_matter():
    features, chosen = torch.randn(2, 3, 4, 5), torch.randint(40, (9,))
    assert torch.equal(pick(features.contiguous(memory_format=torch.channels_last), chosen), pick(features, chosen))
    part, few = features[..., 1:4], chosen[chosen < 24]
    assert torch.equal(pick(part, few), pick(part.clone(), few))
