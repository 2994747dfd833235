"""Prompts and pairs to features."""

import pytest
import torch

from minilib import features, models, world


@pytest.fixture(scope="module")
def clip():
    return models.load_clip("toy", device="cpu")


@pytest.mark.equation("eq-clip-zeroshot")
def test_class_embedding_is_the_normalised_mean_over_templates(clip):
    templates = ("a photo of a {}", "{} for sale")
    got = features.class_embeddings(clip, ["red circle", "blue tee"], templates)
    for row, name in zip(got, ("red circle", "blue tee"), strict=True):
        mean = clip.encode_texts([t.format(name) for t in templates]).mean(0)
        assert torch.allclose(row, mean / mean.norm(), atol=1e-6)


def test_templates_without_room_for_the_name_are_refused(clip):
    for bad in ((), ("a photo",), ("{} {}",)):
        with pytest.raises(ValueError, match="each template must hold one"):
            features.class_embeddings(clip, ["red circle"], bad)


def test_pair_features_come_in_the_order_of_the_pairs(clip):
    pairs = world.make_pairs(2, seed=0)
    a, b, text_a, text_b = features.pair_features(clip, pairs)
    assert a.shape == b.shape == text_a.shape == text_b.shape == (18, 128)
    assert torch.allclose(b[7], clip.encode_images(pairs[7].image_b[None])[0], atol=1e-6)
    assert torch.allclose(text_a[5], clip.encode_texts([f"a photo of {pairs[5].statement_a}"])[0], atol=1e-6)
