"""MEM-2: whose a namespace is (docs/decisions/0009)."""

import pytest

from agentkeep.memory.long_term.namespaces import Layout, normalised
from agentkeep.memory.memories import Memory
from agentkeep.memory.settings import MemorySettings
from agentkeep.memory.strategies import Strategy, StrategyType

USUAL = MemorySettings().namespace_templates


def layout(*templates: str) -> Layout:
    """Of a memory whose strategy `notes-1` declares these templates."""
    strategy = Strategy("notes-1", "notes", StrategyType.SEMANTIC, templates, 0, 0)
    return Layout(Memory("m", "m", 7, 0, 0, strategies=[strategy]), USUAL)


@pytest.mark.parametrize(
    ("given", "normal"), [("a", "/a/"), ("/a/b", "/a/b/"), ("a/b/", "/a/b/"), ("/", "/"), ("//a//", "/a/")]
)
def test_begins_and_ends_with_a_slash(given: str, normal: str) -> None:
    assert normalised(given) == normal


def test_refuses_wildcards() -> None:
    with pytest.raises(ValueError, match="wildcards"):
        normalised("/facts/*/")


@pytest.mark.parametrize(
    ("namespace", "owner"),
    [
        ("/facts/alice/", "alice"),
        ("/preferences/user:1/", "user:1"),
        ("/facts/team/alice/", "team/alice"),  # an actor's id may have slashes, nothing else in this template may
        ("/summaries/alice/s/", "alice"),
        ("/summaries/team/alice/s/", "team/alice"),
        ("/summaries/alice/", None),
        ("/custom/alice/s/", "alice"),
        ("/strategies/x/actors/alice/", "alice"),
        ("/strategies/x/actors/alice/sessions/s/", "alice"),  # the template with more fixed segments
        ("/strategies/x/", None),
        ("/alice/s/", None),
        ("/notes/alice/", None),
        ("/facts/", None),
        ("/", None),
    ],
)
def test_owner_by_usual_templates(namespace: str, owner: str | None) -> None:
    assert layout().owner(namespace) == owner


def test_owner_by_the_memorys_own_templates() -> None:
    own = layout("/{actorId}/{sessionId}/", "/x/{memoryStrategyId}/{actorId}/", "/shared/docs/", "/of-{actorId}/")
    assert own.owner("/facts/alice/") == "facts"  # what the operator declared beats what is usual
    assert own.owner("/x/notes-1/alice/") == "alice"
    assert own.owner("/x/other-2/alice/") == "x/other-2"
    assert own.owner("/of-alice/") is None  # a part of a segment says nothing
    assert layout("/a/{actorId}/{sessionId}/", "/a/{sessionId}/{actorId}/").owner("/a/b/c/") is None  # no agreement


@pytest.mark.parametrize(
    ("path", "admitted"),
    [
        ("/facts/alice/", {"alice"}),
        ("/facts/alice/work/", {"alice"}),
        ("/facts/", set()),
        ("/", set()),
        ("/facts/alicea/", set()),
        ("/facts/Alice/", set()),
        ("/facts/bob/alice/", {"bob"}),
        ("/summaries/alice/", {"alice"}),
        ("/summaries/alice/bob/", {"alice"}),  # a session called as another user
        ("/strategies/x/actors/alice/sessions/bob/", {"alice"}),
        ("/strategies/alice/actors/bob/", {"bob"}),
        ("/strategies/alice/", set()),
        ("/alice/bob/", {"alice"}),  # langgraph's (actor, session)
        ("/alice/", {"alice"}),
        ("/notes/alice/", set()),
    ],
)
def test_admits_only_the_actor_where_it_belongs(path: str, admitted: set[str]) -> None:
    actors = {"alice", "bob", "facts", "actors", "sessions", "strategies", "summaries", "x", "work", "a", ""}
    assert {actor for actor in actors if layout().admits(actor, path)} == admitted


def test_admits_by_the_memorys_own_templates() -> None:
    own = layout("/summaries/actors/{actorId}/sessions/{sessionId}/", "/notes/{actorId}/")
    assert own.admits("alice", "/notes/alice/")
    assert own.admits("alice", "/summaries/actors/alice/")
    assert own.admits("alice", "/summaries/actors/alice/sessions/s/")
    assert not own.admits("actors", "/summaries/actors/alice/sessions/s/")
    assert "/notes/alice/" in own.examples("alice")
