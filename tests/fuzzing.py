"""How many inputs a fuzz test tries: OBJBENCH_FUZZ of them, or a few."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

fuzz = settings(
    max_examples=int(os.environ.get("OBJBENCH_FUZZ", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
"""The readers were tried with OBJBENCH_FUZZ=2000."""

JUNK: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [
            None,
            True,
            False,
            "",
            "7",
            "0",
            0,
            -1,
            1,
            7,
            1.05,
            2**63,
            10**400,
            -0.0,
            1e308,
            1e-320,
            [],
            {},
            [[]],
        ]
    ),
    st.floats(),
    st.integers(),
    st.text(max_size=4),
    st.lists(st.floats(width=32) | st.integers(-5, 40), max_size=5),
    st.dictionaries(
        st.sampled_from(["size", "counts", "x"]), st.text(max_size=5) | st.integers(), max_size=2
    ),
)
"""Values that JSON can hold where others belong."""


def changed(draw: st.DrawFn, value: Any, times: int) -> Any:
    """A copy of a JSON value in which some things are others, gone, or there twice."""
    value = _copy(value)
    for _ in range(times):
        place, key = value, None
        while isinstance(place, dict | list) and place and (key is None or draw(st.integers(0, 4))):
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            inside, key = place, draw(st.sampled_from(keys))
            place = inside[key]
        if key is None:
            return draw(JUNK)
        what = draw(st.sampled_from(["junk", "junk", "gone", "twice"]))
        if what == "junk":
            inside[key] = draw(JUNK)
        elif what == "gone":
            del inside[key]
        elif isinstance(inside, list):
            inside.append(_copy(place))
    return value


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value
