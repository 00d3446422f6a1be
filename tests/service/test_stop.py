from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from carousel.service.work.stop import StopMatcher

text = st.text(alphabet="abc", max_size=30)


def cut(whole, stops):
    """The text before the stop string that is complete first; among those, what begins first."""
    for end in range(len(whole) + 1):
        starts = [end - len(stop) for stop in stops if whole[:end].endswith(stop)]
        if starts:
            return whole[: min(starts)], True
    return whole, False


@given(st.lists(text), st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4))
def test_matcher_lets_through_exactly_what_precedes_the_first_stop(pieces, stops):
    # One character at a time is how the definition reads; pieces of any size must agree where no piece completes two.
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(character) for character in "".join(pieces))
    expected, matched = cut("".join(pieces), stops)
    assert matcher.matched == matched
    assert shown + ("" if matched else matcher.flush()) == expected


@given(st.lists(text), st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4))
def test_matcher_never_shows_any_of_a_stop_string(pieces, stops):
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in pieces)
    whole = "".join(pieces)
    assert whole.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert matcher.matched == any(stop in whole for stop in stops)
    if not matcher.matched:
        assert shown + matcher.flush() == whole


def test_matcher_holds_back_only_what_may_begin_a_stop():
    matcher = StopMatcher(["END", "\n\n"])
    assert [matcher.push(piece) for piece in ["a", "E", "N", "x", "\n", "b", "E", "ND", "more"]] == [
        "a", "", "", "ENx", "", "\nb", "", "", "",
    ]  # fmt: skip
    assert matcher.matched
