"""Labels do not cover each other or a point."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ewq_gguf.report.labels import Box, place_labels

FRAME = Box(0, 0, 400, 300)
places = st.tuples(st.sampled_from(["Q4_K_M", "Q8_0", "a longer name"]), st.floats(0, 400), st.floats(0, 300))


@settings(deadline=None, max_examples=40)
@given(st.lists(places, max_size=30))
def test_no_two_labels_meet(wanted: list[tuple[str, float, float]]) -> None:
    points = [(x, y) for _, x, y in wanted]
    placed = place_labels(wanted, points, FRAME)
    for i, label in enumerate(placed):
        assert label.box.inside(FRAME)
        assert not any(label.box.meets(other.box) for other in placed[:i])
        assert not any(label.box.meets(Box(x - 5, y - 5, 10, 10)) for x, y in points)


def test_room_is_used_and_lack_of_it_leaves_labels_out() -> None:
    alone = [("Q4_K_M", 200.0, 150.0), ("Q6_K", 60.0, 60.0)]
    assert [p.text for p in place_labels(alone, [(200, 150), (60, 60)], FRAME)] == ["Q4_K_M", "Q6_K"]
    crowd = [("Q4_K_M", 200.0, 150.0)] * 40
    assert 1 <= len(place_labels(crowd, [(200, 150)], FRAME)) < 20
