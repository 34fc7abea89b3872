"""The contracts of the ports. Every implementation runs them, and every client of one: in process and over HTTP.

Subclass, and give the fixture each contract names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentkeep.core.call import CallerKind, SessionRef, User
from agentkeep.core.errors import (
    AccessDeniedException,
    ModelErrorException,
    ResourceNotFoundException,
    ServiceQuotaExceededException,
    UnauthorizedException,
    ValidationException,
)
from agentkeep.core.ports import (
    Alert,
    Alerts,
    Audit,
    AuditRecord,
    Authorizers,
    Budget,
    EndedSession,
    Keys,
    MemorySessions,
    Models,
    OutboundCredentials,
    OutboundUse,
    Question,
    Usage,
    UsageRecord,
    WorkloadTokens,
)

__all__ = [
    "AlertsContract",
    "AuditContract",
    "AuthorizersContract",
    "BudgetContract",
    "KeysContract",
    "MemorySessionsContract",
    "ModelsContract",
    "OutboundCredentialsContract",
    "UsageContract",
    "WorkloadTokensContract",
]

SESSION = SessionRef("agent-0123456789", "session-" + "0" * 32)
OTHER = SessionRef("agent-0123456789", "session-" + "1" * 32)
NOW = datetime.now(UTC).replace(microsecond=123456)
ALICE = User("alice", "https://issuer.example")


class KeysContract:
    """Fixture `keys`."""

    async def test_a_sessions_key_says_whose_it_is(self, keys: Keys) -> None:
        issued = await keys.issue_for_session(SESSION, ALICE)
        assert keys.cached(issued.access_key_id) is None
        found = await keys.find(issued.access_key_id)
        assert found is not None
        assert (found.id, found.secret) == (issued.access_key_id, issued.secret_access_key)
        assert (found.session_token, found.expires) == (issued.session_token, issued.expiration)
        caller = found.caller
        assert (caller.kind, caller.session, caller.user) == (CallerKind.SESSION, SESSION, ALICE)
        assert caller.access_key_id == issued.access_key_id
        assert SESSION.session_id in caller.principal
        assert keys.cached(issued.access_key_id) == found

    async def test_a_users_claims_go_with_the_key(self, keys: Keys) -> None:
        """Policies read them."""
        user = User("alice", "https://issuer.example", {"department": "support", "scope": "read write"})
        issued = await keys.issue_for_session(SESSION, user)
        found = await keys.find(issued.access_key_id)
        assert found is not None
        assert found.caller.user is not None
        assert dict(found.caller.user.claims) == dict(user.claims)

    async def test_nobodys_session(self, keys: Keys) -> None:
        issued = await keys.issue_for_session(SESSION, None)
        found = await keys.find(issued.access_key_id)
        assert found is not None
        assert found.caller.user is None

    async def test_without_aws_a_session_may_begin_without_keys(self, keys: Keys) -> None:
        assert await keys.begin_session(SESSION, ALICE, "the.user.token") is None
        issued = await keys.issue_for_session(SESSION, ALICE, "the.user.token")
        assert issued.role_arn is None

    async def test_no_such_key(self, keys: Keys) -> None:
        for unknown in ("ASIA" + "0" * 16, "AKIA" + "0" * 16, "", "x" * 200, "ключ"):
            assert await keys.find(unknown) is None
            assert keys.cached(unknown) is None

    async def test_a_session_ends_and_its_keys_with_it(self, keys: Keys) -> None:
        first = await keys.issue_for_session(SESSION, ALICE)
        second = await keys.issue_for_session(SESSION, ALICE)
        other = await keys.issue_for_session(OTHER, ALICE)
        for key in (first, second, other):
            assert await keys.find(key.access_key_id) is not None
        await keys.end_session(SESSION)
        for key in (first, second):
            assert keys.cached(key.access_key_id) is None
            assert await keys.find(key.access_key_id) is None
        assert await keys.find(other.access_key_id) is not None

    async def test_a_session_begun_anew_does_not_revive_old_keys(self, keys: Keys) -> None:
        old = await keys.issue_for_session(SESSION, ALICE)
        await keys.end_session(SESSION)
        new = await keys.issue_for_session(SESSION, ALICE)
        assert await keys.find(old.access_key_id) is None
        assert await keys.find(new.access_key_id) is not None

    async def test_ending_twice_and_ending_what_never_was(self, keys: Keys) -> None:
        await keys.end_session(OTHER)
        await keys.end_session(OTHER)

    async def test_secrets_are_not_shown(self, keys: Keys) -> None:
        issued = await keys.issue_for_session(SESSION, ALICE)
        found = await keys.find(issued.access_key_id)
        for shown in (repr(issued), repr(found)):
            assert issued.secret_access_key not in shown
            assert issued.session_token not in shown

    async def test_many_at_once(self, keys: Keys) -> None:
        issued = await asyncio.gather(*(keys.issue_for_session(SESSION, ALICE) for _ in range(20)))
        found = await asyncio.gather(*(keys.find(each.access_key_id) for each in issued))
        assert [key and key.secret for key in found] == [each.secret_access_key for each in issued]


class AuthorizersContract:
    """Fixtures `authorizers`; `authorizer`, a customJWTAuthorizer for the audience `agentkeep`; and `new_token`, which
    makes its issuer's tokens for a user's name, and perhaps another audience."""

    async def test_a_users_token(
        self, authorizers: Authorizers, authorizer: Mapping[str, Any], new_token: Callable[..., Awaitable[str]]
    ) -> None:
        token = await new_token("alice")
        assert authorizers.cached(authorizer, token) is None
        user = await authorizers.verify(authorizer, token)
        assert user.id == "alice"
        assert user.issuer
        cached = authorizers.cached(authorizer, token)
        assert cached == user
        assert cached is not None
        assert dict(cached.claims) == dict(user.claims)

    async def test_what_is_no_token(self, authorizers: Authorizers, authorizer: Mapping[str, Any]) -> None:
        for token in ("", "x", "a.b.c", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0."):
            with pytest.raises(UnauthorizedException):
                await authorizers.verify(authorizer, token)
            assert authorizers.cached(authorizer, token) is None

    async def test_a_token_for_somebody_else(
        self, authorizers: Authorizers, authorizer: Mapping[str, Any], new_token: Callable[..., Awaitable[str]]
    ) -> None:
        token = await new_token("alice", "other")
        with pytest.raises(AccessDeniedException, match="aud"):
            await authorizers.verify(authorizer, token)
        assert authorizers.cached(authorizer, token) is None

    async def test_what_one_authorizer_knows_another_does_not(
        self, authorizers: Authorizers, authorizer: Mapping[str, Any], new_token: Callable[..., Awaitable[str]]
    ) -> None:
        token = await new_token("alice")
        await authorizers.verify(authorizer, token)
        other = {**authorizer, "allowedAudience": ["other"]}
        assert authorizers.cached(other, token) is None
        with pytest.raises(AccessDeniedException):
            await authorizers.verify(other, token)

    async def test_an_authorizer_that_cannot_be_honoured(
        self, authorizers: Authorizers, authorizer: Mapping[str, Any]
    ) -> None:
        await authorizers.check(authorizer)
        with pytest.raises(ValidationException) as refused:
            await authorizers.check({**authorizer, "discoveryUrl": "http://issuer.example/.well-known/x"})
        assert [field.name for field in refused.value.fields] == ["customJWTAuthorizer.discoveryUrl"]


class WorkloadTokensContract:
    """Fixture `workload_tokens`."""

    async def test_an_identity_is_made_once(self, workload_tokens: WorkloadTokens) -> None:
        arn = await workload_tokens.create_for_service("agent-0123456789")
        assert arn.startswith("arn:aws:bedrock-agentcore:")
        assert await workload_tokens.create_for_service("agent-0123456789") == arn

    async def test_tokens_are_for_a_user(self, workload_tokens: WorkloadTokens) -> None:
        await workload_tokens.create_for_service("agent-0123456789")
        token = await workload_tokens.issue("agent-0123456789", ALICE, "the.user.token")
        assert token
        assert token != await workload_tokens.issue("agent-0123456789", ALICE)
        assert await workload_tokens.issue("agent-0123456789", None) is None

    async def test_without_an_identity_no_token(self, workload_tokens: WorkloadTokens) -> None:
        with pytest.raises(ResourceNotFoundException):
            await workload_tokens.issue("nobody-0123456789", ALICE)
        await workload_tokens.create_for_service("gone-0123456789")
        await workload_tokens.delete_for_service("gone-0123456789")
        await workload_tokens.delete_for_service("gone-0123456789")
        with pytest.raises(ResourceNotFoundException):
            await workload_tokens.issue("gone-0123456789", ALICE)


def record(**members: Any) -> UsageRecord:
    whole: dict[str, Any] = {
        "session": SESSION,
        "user_id": "alice",
        "model_id": "model-1",
        "provider": "bedrock",
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_read_tokens": 1,
        "cache_write_tokens": 0,
        "latency_ms": 12.5,
        "at": NOW,
        "request_id": "request-1",
    }
    return UsageRecord(**whole | members)


class UsageContract:
    """Fixture `usage`."""

    async def test_gives_back_what_was_recorded(self, usage: Usage) -> None:
        later = record(request_id="request-2", at=NOW + timedelta(seconds=1), estimated=True)
        await usage.record(later)
        await usage.record(record())
        assert await usage.of_session(SESSION) == [record(), later]
        assert await usage.of_session(OTHER) == []

    async def test_one_call_is_counted_once(self, usage: Usage) -> None:
        await usage.record(record())
        await usage.record(record())
        assert await usage.of_session(SESSION) == [record()]

    async def test_calls_outside_any_session(self, usage: Usage) -> None:
        await usage.record(replace(record(), session=None, user_id=None))
        assert await usage.of_session(SESSION) == []


class BudgetContract:
    """Fixture `budget`."""

    async def test_what_is_reserved_is_gone_until_it_is_settled(self, budget: Budget) -> None:
        await budget.open(SESSION, 100)
        first = await budget.reserve(SESSION, 30, 40)
        assert first is not None
        assert (first.session, first.tokens) == (SESSION, 70)
        with pytest.raises(ServiceQuotaExceededException, match="100"):
            await budget.reserve(SESSION, 30, 1)
        await budget.settle(first, 20)
        await budget.settle(first, 20)
        second = await budget.reserve(SESSION, 40, 40)
        assert second is not None
        with pytest.raises(ServiceQuotaExceededException):
            await budget.reserve(SESSION, 1, 0)

    async def test_sessions_have_budgets_of_their_own(self, budget: Budget) -> None:
        await budget.open(SESSION, 10)
        await budget.open(OTHER, 10)
        assert await budget.reserve(SESSION, 5, 5) is not None
        assert await budget.reserve(OTHER, 5, 5) is not None

    async def test_a_session_without_a_budget(self, budget: Budget) -> None:
        await budget.open(SESSION, None)
        assert await budget.reserve(SESSION, 10**9, 10**9) is None

    async def test_calls_at_once_never_get_over_it(self, budget: Budget) -> None:
        await budget.open(SESSION, 100)
        answers = await asyncio.gather(*(budget.reserve(SESSION, 5, 5) for _ in range(64)), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, ServiceQuotaExceededException)]
        assert len(refused) == 54, answers


class AlertsContract:
    """Fixtures `alerts`, and `kept`: all alerts that are kept, with how often each was raised."""

    async def test_an_alert_is_kept(
        self, alerts: Alerts, kept: Callable[[], Awaitable[Sequence[tuple[Alert, int]]]]
    ) -> None:
        crossing = alert()
        other = alert(kind="misplaced-key", session=None, user_id=None, details={})
        await alerts.raise_alert(crossing)
        await alerts.raise_alert(other)
        assert {each.kind: each for each, _ in await kept()} == {crossing.kind: crossing, other.kind: other}

    async def test_of_the_same_the_number_is_kept(
        self, alerts: Alerts, kept: Callable[[], Awaitable[Sequence[tuple[Alert, int]]]]
    ) -> None:
        await asyncio.gather(*(alerts.raise_alert(alert()) for _ in range(20)))
        assert sum(count for _, count in await kept()) == 20


def alert(**members: Any) -> Alert:
    whole: dict[str, Any] = {
        "kind": "cross-user-access",
        "summary": "bob tried ListEvents on actor alice: it was refused.",
        "principal": "arn:aws:sts::000000000000:assumed-role/agent-0123456789/session",
        "session": SESSION,
        "user_id": "bob",
        "at": NOW.replace(second=30, microsecond=0),
        "details": {"operation": "ListEvents"},
    }
    return Alert(**whole | members)


class ModelsContract:
    """Fixtures `models`: with the models `echo`, which says what it was asked, `loose`, which no schema can hold,
    `short`, which never finishes, and no other; `used`: what was counted so far."""

    async def test_an_answer_is_for_somebody(
        self, models: Models, used: Callable[[], Awaitable[list[UsageRecord]]]
    ) -> None:
        assert "how are you" in await models.answer(question("echo", prompt="how are you"))
        (record,) = await used()
        assert (record.session, record.user_id) == (SESSION, "alice")

    async def test_a_schema_is_asked_for_one_way_or_the_other(self, models: Models) -> None:
        schema = {"type": "object", "properties": {"facts": {"type": "array"}}}
        for model in ("echo", "loose", "loose"):
            assert "facts" in await models.answer(question(model, schema=schema)), model

    async def test_what_is_no_whole_answer_is_none(self, models: Models) -> None:
        with pytest.raises(ModelErrorException):
            await models.answer(question("short"))

    async def test_a_model_that_is_not_there_is_told_so(self, models: Models) -> None:
        with pytest.raises(ResourceNotFoundException):
            await models.answer(question("another"))


def question(model_id: str, **members: Any) -> Question:
    made: dict[str, Any] = {"system": "You answer.", "prompt": "hello", "purpose": "extraction", "max_tokens": 100}
    return Question(model_id, session=SESSION, user_id="alice", **(made | members))


class AuditContract:
    """Fixtures `audit`, and `recorded`: all records that are kept."""

    async def test_what_is_recorded_is_kept(
        self, audit: Audit, recorded: Callable[[], Awaitable[Sequence[AuditRecord]]]
    ) -> None:
        acted = audit_record()
        other = audit_record(kind="refused", session=SESSION, user_id=None, details={}, count=7)
        await audit.record(acted)
        await audit.record(other)
        assert {record.id: record for record in await recorded()} == {acted.id: acted, other.id: other}

    async def test_a_record_told_twice_is_one(
        self, audit: Audit, recorded: Callable[[], Awaitable[Sequence[AuditRecord]]]
    ) -> None:
        told = audit_record()
        await asyncio.gather(*(audit.record(told) for _ in range(5)))
        assert await recorded() == [told]


def audit_record(**members: Any) -> AuditRecord:
    whole: dict[str, Any] = {
        "kind": "acted-for-user",
        "summary": "arn:aws:iam::000000000000:user/app called ListEvents for alice.",
        "principal": "arn:aws:iam::000000000000:user/app",
        "session": None,
        "user_id": "alice",
        "at": NOW,
        "details": {"operation": "ListEvents"},
    }
    return AuditRecord(**whole | members)


OUTBOUND_USE = OutboundUse("arn:aws:iam::000000000000:user/app", SESSION, "alice", None, "target tickets of gateway g")


class OutboundCredentialsContract:
    """Fixtures `outbound_credentials`, and `provider`: the ARN of an API-key provider and its key."""

    async def test_the_key_of_a_provider(
        self, outbound_credentials: OutboundCredentials, provider: tuple[str, str]
    ) -> None:
        arn, key = provider
        assert await outbound_credentials.api_key(arn, OUTBOUND_USE) == key

    async def test_no_such_provider(self, outbound_credentials: OutboundCredentials, provider: tuple[str, str]) -> None:
        with pytest.raises(ResourceNotFoundException):
            await outbound_credentials.api_key(provider[0] + "-not", OUTBOUND_USE)


class MemorySessionsContract:
    """Fixtures `memory_sessions`; and `kept`: how many events there are of the user alice in a session, of which there
    are some in each that begins with `session`, in a memory that is to remove them with it."""

    async def test_what_is_to_go_goes(
        self, memory_sessions: MemorySessions, kept: Callable[[str], Awaitable[int]]
    ) -> None:
        assert await kept(SESSION.session_id)
        assert await kept(OTHER.session_id)
        ended = EndedSession(SESSION, User("alice"), 1, NOW)
        await memory_sessions.session_ended(ended)
        await memory_sessions.session_ended(ended)
        await _until_gone(kept, SESSION)
        await memory_sessions.session_ended(ended)
        assert await kept(OTHER.session_id)

    async def test_other_users_sessions_are_theirs(
        self, memory_sessions: MemorySessions, kept: Callable[[str], Awaitable[int]]
    ) -> None:
        await memory_sessions.session_ended(EndedSession(SESSION, User("bob"), 1, NOW))
        await memory_sessions.session_ended(EndedSession(OTHER, User("alice"), 1, NOW))
        await _until_gone(kept, OTHER)
        assert await kept(SESSION.session_id)


async def _until_gone(kept: Callable[[str], Awaitable[int]], session: SessionRef) -> None:
    for _ in range(1000):
        if not await kept(session.session_id):
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"events of {session.session_id} are still there")
