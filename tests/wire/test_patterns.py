"""The models' patterns in Python: the same language, and no string that takes for ever."""

import re
import time
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentkeep.testing.samples import NoSample, string
from agentkeep.wire.model import SERVICES, Shape, service
from agentkeep.wire.patterns import _LINEAR, MAX_UNBOUNDED, matcher, translate


def strings_of_requests() -> dict[tuple[str, int], Shape]:
    """Every string with a pattern that a request can hold, by pattern and greatest length."""
    found: dict[tuple[str, int], Shape] = {}
    seen: set[Shape] = set()

    def visit(shape: Shape) -> None:
        if shape in seen or shape.error:
            return
        seen.add(shape)
        if shape.kind == "structure":
            for member in shape.members.values():
                visit(member.shape)
        elif shape.kind == "list":
            visit(shape.item)
        elif shape.kind == "map":
            visit(shape.key)
            visit(shape.value)
        elif shape.kind == "string" and shape.pattern is not None:
            found[shape.pattern, int(shape.high or MAX_UNBOUNDED)] = shape

    for name in SERVICES:
        for operation in service(name).operation_names:
            model = service(name).operation(operation)
            if model.input is not None:
                visit(model.input)
    return found


STRINGS = strings_of_requests()


def test_every_pattern_compiles_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pattern, _ in STRINGS:
            re.compile(translate(pattern), re.ASCII)


def hostile(pattern: str, shape: Shape, longest: int) -> Iterator[str]:
    """Strings that nearly match: pieces of a matching one, repeated as long as may be, and an end that cannot match."""
    text = string(shape)
    pieces = {text[i : i + n] for n in (1, 2, 3) for i in range(max(1, len(text) - n + 1))}
    pieces |= {"a", "0", "A0", "a-", "a.", "a/", "-", "\\", "a:", "a_", ".a", "{a}"}
    for piece in sorted(pieces):
        for start in {"", text[: text.find(piece) + len(piece)]} if piece in text else {"", text}:
            yield (start + piece * (longest // len(piece) + 1))[: longest - 1] + "\n"


def test_no_string_within_its_length_takes_long() -> None:
    """A request may hold thousands of strings; a pattern that takes quadratic time is a way to stop the service."""
    slow: dict[str, float] = {}
    for (pattern, longest), shape in STRINGS.items():
        try:
            attacks = list(hostile(pattern, shape, longest))
        except NoSample:
            pytest.fail(f"no sample for {pattern}")
        matches = matcher(pattern)
        for attack in attacks:
            start = time.process_time()
            matches(attack)
            took = time.process_time() - start
            if took > 0.005:
                start = time.process_time()  # once more: it may have been the machine
                matches(attack)
                took = min(took, time.process_time() - start)
            if took > max(slow.get(pattern, 0), 0.005):
                slow[pattern] = took
    assert not slow


@pytest.mark.parametrize("original", _LINEAR)
def test_patterns_rewritten_for_speed_match_the_same(original: str) -> None:
    ours, theirs = matcher(original), re.compile(original, re.ASCII).fullmatch

    @settings(max_examples=500, deadline=None, database=None)
    @given(st.text("aZ0-_/:=.*?[]\\ \n", max_size=9))
    def same(text: str) -> None:
        if text or "AwsSkill" not in original:
            assert (ours(text) is None) == (theirs(text) is None)

    same()


def test_java_classes_are_ascii() -> None:
    assert matcher(r"\d+")("12") is not None
    assert matcher(r"\d+")("١٢") is None
    assert matcher(r"\w+")("é") is None


@pytest.mark.parametrize("text", ["a\x00b", "a\x7f", "​", "﻿", "\ud800", "\ue000", "­"])
def test_invisible_characters_are_refused_where_java_would(text: str) -> None:
    matches = matcher(r"[^\p{C}]*")
    assert matches("naïve – 漢字 🙂") is not None
    assert matches(text) is None
