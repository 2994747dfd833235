"""Charts that no other module's tests draw."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.text import Annotation

from minilib import plotting


def test_flow_has_a_box_for_each_name_and_an_arrow_for_each_link():
    _, ax = plt.subplots()
    boxes = {"pool": (0, 0), "curate": (1, 0), "train": (2, 1)}
    plotting.plot_flow(ax, boxes, [("pool", "curate"), ("curate", "train")], back=[("train", "pool")])
    arrows = [text for text in ax.texts if isinstance(text, Annotation)]
    names = {text.get_text(): text for text in ax.texts if text not in arrows}
    assert {name: text.get_position() for name, text in names.items()} == boxes
    ends = [(arrow.arrow_patch.patchA, arrow.arrow_patch.patchB) for arrow in arrows]
    frame = {name: text.get_bbox_patch() for name, text in names.items()}
    assert ends == [(frame[a], frame[b]) for a, b in (("pool", "curate"), ("curate", "train"), ("train", "pool"))]
    assert [arrow.arrow_patch.get_linestyle() for arrow in arrows] == ["-", "-", "--"]
    plt.close()


def test_flow_names_a_box_that_is_not_there():
    _, ax = plt.subplots()
    with pytest.raises(KeyError, match="sea"):
        plotting.plot_flow(ax, {"pool": (0, 0)}, [("pool", "sea")])
    plt.close()
