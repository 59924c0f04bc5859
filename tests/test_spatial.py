"""The fast spatial toolkit against the plain one: values and gradients."""

import pytest
import torch

from objbench.spatial import (
    boxes_around,
    candidate_cells,
    clamp_boxes,
    crop,
    in_parts,
    overlap,
    paint,
    take_cells,
    top_cells,
    trim_boxes,
)
from objbench.spatial.reference import crop_plain, overlap_plain, paint_plain


def some_boxes(n: int, k: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Boxes of many sizes, some reaching far outside the image, some smaller than a pixel of it."""
    gen = torch.Generator().manual_seed(seed)
    centre = torch.rand(n, k, 2, generator=gen) * torch.tensor([width, height]) * 1.2 - 3
    size = torch.exp(torch.rand(n, k, 2, generator=gen) * 5 - 0.5)  # 0.6 .. 90 px
    return torch.cat([centre - size / 2, centre + size / 2], -1).requires_grad_()


def assert_equal_with_gradients(fast, plain, inputs, tolerance=1e-4):
    torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance)
    weight = torch.randn(fast.shape, generator=torch.Generator().manual_seed(1))
    fast_grads = torch.autograd.grad((fast * weight).sum(), inputs)
    plain_grads = torch.autograd.grad((plain * weight).sum(), inputs)
    for name, a, b in zip("ab", fast_grads, plain_grads, strict=False):
        assert b.abs().max() > 0, f"the plain gradient of input {name} is zero: the test shows nothing"
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("outside", ["zeros", "border"])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_equals_grid_sample_on_copies(channels, outside):
    images = torch.rand(2, channels, 40, 56, requires_grad=True)
    boxes = some_boxes(2, 9, 40, 56)
    fast, plain = (way(images, boxes, 12, outside) for way in (crop, crop_plain))
    assert_equal_with_gradients(fast, plain, [images, boxes])


def test_outside_the_image_a_glimpse_is_black_or_repeats_the_border():
    images = torch.full((1, 1, 8, 8), 0.25)
    images[..., -1] = 0.75
    beyond = torch.tensor([[[8.0, 0, 16, 8]]])  # right of the image
    assert crop(images, beyond, 4)[..., 1:].abs().max() == 0
    torch.testing.assert_close(crop(images, beyond, 4, "border"), torch.full((1, 1, 1, 4, 4), 0.75))


@pytest.mark.parametrize("channels", [1, 4])
def test_paint_equals_summed_canvases(channels):
    glimpses = torch.rand(2, 9, channels, 12, 12, requires_grad=True)
    boxes = some_boxes(2, 9, 40, 56)
    assert_equal_with_gradients(
        paint(glimpses, boxes, 40, 56), paint_plain(glimpses, boxes, 40, 56), [glimpses, boxes]
    )


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_overlap_equals_the_dense_one(at_once, monkeypatch):
    monkeypatch.setattr("objbench.spatial.glimpses.CANVASES", at_once * 9 * 40 * 56)
    glimpses = torch.rand(3, 9, 12, 12, requires_grad=True)
    boxes = some_boxes(3, 9, 40, 56)
    assert_equal_with_gradients(
        overlap(glimpses, boxes, 40, 56), overlap_plain(glimpses, boxes, 40, 56), [glimpses, boxes]
    )


def test_overlap_of_objects_apart_is_nothing_and_of_one_twice_is_its_sum():
    ones = torch.ones(1, 2, 8, 8)
    apart = torch.tensor([[[0.0, 0, 8, 8], [20, 20, 28, 28]]])
    same = torch.tensor([[[4.0, 4, 12, 12], [4, 4, 12, 12]]])
    assert overlap(ones, apart, 32, 32).item() == pytest.approx(0, abs=1e-4)
    assert overlap(ones, same, 32, 32).item() == pytest.approx(64, abs=1e-3)


def test_crop_of_a_box_aligned_with_pixels_is_a_copy():
    images = torch.rand(1, 2, 16, 16)
    boxes = torch.tensor([[[3.0, 5, 11, 13]]])
    torch.testing.assert_close(crop(images, boxes, 8)[0, 0], images[0, :, 5:13, 3:11], atol=1e-5, rtol=0)


def test_paint_undoes_crop_on_aligned_boxes():
    images = torch.rand(1, 1, 16, 16)
    boxes = torch.tensor([[[3.0, 5, 11, 13]]])
    canvas = paint(crop(images, boxes, 8), boxes, 16, 16)
    torch.testing.assert_close(canvas[..., 5:13, 3:11], images[..., 5:13, 3:11], atol=1e-5, rtol=0)
    assert canvas[..., :5, :].abs().max() < 1e-5


def test_boxes_around_puts_each_centre_in_its_own_cell():
    centre = torch.full((1, 6, 2), 0.5)
    size = torch.full((1, 6, 2), 10.0)
    boxes = boxes_around(centre, size, grid=(2, 3), image=(20, 60))
    assert boxes[0, 0].tolist() == [5, 0, 15, 10]
    assert boxes[0, 5].tolist() == [45, 10, 55, 20]


def test_trim_boxes_cuts_to_what_is_bright_and_keeps_an_empty_glimpse():
    brightness = torch.zeros(2, 8, 8)
    brightness[0, 2:4, 5:7] = 0.9  # rows 2..3, columns 5..6
    boxes = torch.tensor([[0.0, 0, 16, 16], [1, 2, 3, 4]])
    trimmed = trim_boxes(boxes, brightness, 0.2)
    assert trimmed[0].tolist() == [10, 4, 14, 8]
    assert trimmed[1].tolist() == [1, 2, 3, 4]


def test_trimmed_edges_lie_where_the_brightness_crosses_the_threshold():
    brightness = torch.zeros(1, 8, 8)
    brightness[0, 2:5, 3] = torch.tensor([0.8, 0.8, 0.5])  # rows 2..4 of column 3; around them it is dark
    boxes = torch.tensor([[10.0, 20, 26, 36]])  # 2 px a glimpse pixel
    # The line from 0 at the centre of one pixel to 0.8 at that of the next is 0.2 after a quarter, to 0.5 after 0.4.
    left, right, top, bottom = 2.5 + 0.25, 4.5 - 0.25, 1.5 + 0.25, 5.5 - 0.4
    expected = torch.tensor([10 + 2 * left, 20 + 2 * top, 10 + 2 * right, 20 + 2 * bottom])
    torch.testing.assert_close(trim_boxes(boxes, brightness, 0.2, "crossing")[0], expected)
    assert trim_boxes(boxes, brightness, 0.2, "pixels")[0].tolist() == [16, 24, 18, 30]
    with pytest.raises(ValueError, match="edges='soft' is not one of glimpse, crossing, pixels"):
        trim_boxes(boxes, brightness, 0.2, "soft")


def test_trimmed_boxes_stay_inside_and_keep_a_size():
    torch.manual_seed(0)
    corners = 40 * torch.rand(200, 2)
    boxes = torch.cat([corners, corners + 0.3 + 20 * torch.rand(200, 2)], 1)
    brightness = torch.rand(200, 6, 6) ** 40
    brightness[:20] = (brightness[:20] >= 0.5) * 0.5  # exactly at the threshold
    crossing = trim_boxes(boxes, brightness, 0.5, "crossing")
    assert (crossing[:, :2] >= boxes[:, :2] - 1e-4).all()
    assert (crossing[:, 2:] <= boxes[:, 2:] + 1e-4).all()
    assert (crossing[:, 2:] > crossing[:, :2]).all()
    pixels = trim_boxes(boxes, brightness, 0.5, "pixels")
    lit = (brightness >= 0.5).flatten(1).any(1)
    assert 0 < int(lit.sum()) < 200
    assert torch.equal(pixels[lit], pixels[lit].round())
    assert ((pixels[:, 2:] - pixels[:, :2])[lit] >= 1).all()
    assert torch.equal(pixels[~lit], boxes[~lit])


def test_a_rectangle_seen_in_a_glimpse_is_found_to_a_quarter_of_a_glimpse_pixel():
    """Glimpses of 12 pixels over 24: edges between glimpse pixels can be off by up to half a glimpse pixel."""
    errors = {}
    for edges in ("glimpse", "crossing"):
        apart = []
        for low in range(16, 24):
            image = torch.zeros(1, 1, 48, 48)
            image[0, 0, low : low + 9, low : low + 9] = 1
            box = torch.tensor([[[12.0, 12, 36, 36]]])
            glimpse = crop(image, box, 12).mean(2)[0, 0]
            found = trim_boxes(box[0, 0], glimpse, 0.5, edges)
            apart.append(float((found - torch.tensor([low, low, low + 9, low + 9.0])).abs().max()))
        errors[edges] = max(apart)
    assert errors["crossing"] <= 0.5 < errors["glimpse"]


def test_clamp_boxes_cuts_to_the_image():
    boxes = torch.tensor([[-3.0, -2, 5, 6], [10, 11, 40, 50], [1, 2, 3, 4], [60, 60, 70, 70]])
    expected = [[0, 0, 5, 6], [10, 11, 30, 20], [1, 2, 3, 4], [30, 20, 30, 20]]
    assert clamp_boxes(boxes, (20, 30)).tolist() == expected


def test_top_cells_are_those_of_highest_presence_or_all_in_order():
    presence = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.8, 0.2, 0.3, 0.1]])
    assert [sorted(cells) for cells in top_cells(presence, 2).tolist()] == [[1, 3], [0, 2]]
    for keep in (0, 4, 5):
        assert top_cells(presence, keep).tolist() == [[0, 1, 2, 3]] * 2


def test_candidate_cells_are_as_many_as_the_fullest_image_has_and_at_least_one():
    presence = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.8, 0.2, 0.3, 0.1]])
    assert candidate_cells(presence, 0.5).tolist() == [[1, 3, 2], [0, 2, 1]]
    assert candidate_cells(presence, 0.95).tolist() == [[1], [0]]
    assert candidate_cells(presence, 0.9).tolist() == [[1], [0]]  # "at least"


@pytest.mark.parametrize("shape", [(), (3,), (2, 5, 5)])
def test_take_cells_indexes_every_image(shape):
    values = torch.rand(2, 6, *shape, requires_grad=True)
    cells = torch.tensor([[5, 0, 2], [1, 1, 4]])
    taken = take_cells(values, cells)
    assert torch.equal(taken, torch.stack([values[i, cells[i]] for i in range(2)]))
    taken.sum().backward()
    assert float(values.grad[1, 1].max()) == 2
    assert float(values.grad[0, 1].max()) == 0


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("at_once", [1, 2, 5, 9])
def test_in_parts_equals_the_whole_in_values_and_gradients(at_once, recompute):
    calls = []

    def pair(a, b):
        calls.append(len(a))
        return a.sin() * b, (a + b).square()

    def one(a, b):
        return pair(a, b)[0]

    inputs = [torch.rand(5, 3, requires_grad=True) for _ in range(2)]
    results = in_parts(pair, inputs, at_once, recompute)
    parts = [5] if at_once >= 5 else [at_once] * (5 // at_once) + [5 % at_once] * (5 % at_once > 0)
    assert calls == parts
    gradients = torch.autograd.grad(sum(r.sum() for r in results), inputs)
    assert len(calls) == (2 if recompute and at_once < 5 else 1) * len(parts)
    expected = pair(*inputs)
    for found, known in zip(results, expected, strict=True):
        assert torch.equal(found, known)
    for found, known in zip(
        gradients, torch.autograd.grad(sum(r.sum() for r in expected), inputs), strict=True
    ):
        torch.testing.assert_close(found, known)
    assert torch.equal(in_parts(one, inputs, at_once, recompute), expected[0])
