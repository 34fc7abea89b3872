"""Sealed tokens: nobody else can make, change or read one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.sealing import Seal

SEAL = Seal(FileMasterKey(b"k" * 32), "tests")
DOCUMENT = {"user": "alice", "n": 1, "none": None}
TOKEN = SEAL.seal(DOCUMENT)


def test_what_was_sealed_opens() -> None:
    assert SEAL.open(TOKEN) == DOCUMENT
    assert "alice" not in TOKEN


def test_another_key_or_purpose_does_not_open_it() -> None:
    assert Seal(FileMasterKey(b"l" * 32), "tests").open(TOKEN) is None
    assert Seal(FileMasterKey(b"k" * 32), "others").open(TOKEN) is None


@given(st.integers(0, len(TOKEN) - 1), st.characters())
def test_one_changed_character_is_enough(index: int, character: str) -> None:
    changed = TOKEN[:index] + character + TOKEN[index + 1 :]
    assert SEAL.open(changed) == (DOCUMENT if changed == TOKEN else None)


@given(st.text() | st.sampled_from([TOKEN + "=", TOKEN + "==", TOKEN + "\n", TOKEN[:-1], " " + TOKEN]))
def test_other_text_is_refused(text: str) -> None:
    assert SEAL.open(text) is None or text == TOKEN
