"""Who may call what: decisions by Cedar policies, and that nothing is ever allowed by default or by error."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentkeep.core.call import INCOMPLETE_CLAIMS, Caller, CallerKind, SessionRef, User
from agentkeep.core.clock import SystemClock
from agentkeep.core.identifiers import Deployment
from agentkeep.gateway.control import layout
from agentkeep.gateway.control.resources import StoredResources
from agentkeep.gateway.policy.decisions import Decision, PolicyDecisions
from agentkeep.gateway.policy.validation import findings
from agentkeep.gateway.records import GatewayRecord, PolicyEngineRecord, PolicyRecord, TargetRecord, Tool
from agentkeep.storage.interface import Put
from agentkeep.storage.records import encode
from agentkeep.storage.valkey import ValkeyKeyValueStore

CLOCK = SystemClock()
NOW = CLOCK.now()
ARN = Deployment().arn("gateway/shop-0123456789")
ENGINE = "rules-0123456789"
REFUND = Tool(
    "refund",
    "Gives money back",
    {
        "type": "object",
        "properties": {
            "order": {"type": "string"},
            "amount": {"type": "number"},
            "count": {"type": "integer"},
            "express": {"type": "boolean"},
            "notes": {"type": "array", "items": {"type": "string"}},
            "address": {"type": "object", "properties": {"country": {"type": "string"}}, "required": ["country"]},
            "anything": {},
            "place": {"$ref": "#/$defs/Place"},
        },
        "required": ["order", "amount"],
        "$defs": {
            "Place": {"type": "object", "properties": {"lat": {"type": "number"}, "of": {"$ref": "#/$defs/Place"}}}
        },
    },
)
STATUS = Tool("status", "Says where an order is", {"type": "object", "properties": {"order": {"type": "string"}}})
ALICE = User("alice", "https://issuer", {"role": "clerk", "groups": "night_shift staff"})
SUPPORT = SessionRef("support-0123456789", "session-" + "1" * 32)


def agent(user: User | None = ALICE, session: SessionRef = SUPPORT) -> Caller:
    principal = f"arn:aws:sts::000000000000:assumed-role/{session.runtime_id}/{session.session_id}"
    return Caller(CallerKind.SESSION, principal, "ASIA", user, session)


def person(user: User = ALICE) -> Caller:
    return Caller(CallerKind.USER, f"arn:aws:sts::000000000000:federated-user/{user.id}", user=user)


OPERATOR = Caller(CallerKind.OPERATOR, "arn:aws:iam::000000000000:user/ops", "AKIA")


def permit(
    condition: str = "true", action: str = '== AgentCore::Action::"Orders___refund"', effect: str = "permit"
) -> str:
    return f'{effect}(principal, action {action}, resource == AgentCore::Gateway::"{ARN}") when {{ {condition} }};'


def tagged(tag: str, value: str) -> str:
    return f'principal is AgentCore::OAuthUser && principal.hasTag("{tag}") && principal.getTag("{tag}") == "{value}"'


def of_agent(name: str) -> str:
    return tagged("agentkeep:agent", name)


class Shop:
    """A gateway with the target Orders, in the store as the control plane writes it."""

    def __init__(self, store: ValkeyKeyValueStore) -> None:
        self.store = store
        self.decisions = PolicyDecisions(StoredResources(store), CLOCK)
        self.gateway = GatewayRecord(
            "shop-0123456789", ARN, "shop", "READY", "AWS_IAM", None, ENGINE, "ENFORCE", NOW, NOW
        )

    async def open(
        self, *policies: str | PolicyRecord, tools: Sequence[Tool] = (REFUND, STATUS), **changes: Any
    ) -> Shop:
        self.gateway = GatewayRecord(
            **{name: getattr(self.gateway, name) for name in GatewayRecord.__slots__} | changes
        )
        target = TargetRecord(self.gateway.id, "t" * 10, "Orders", "READY", {}, [], tools, NOW, NOW)
        engine = PolicyEngineRecord(ENGINE, Deployment().arn(f"policy-engine/{ENGINE}"), "rules", "ACTIVE", NOW, NOW)
        await self.store.delete_partition(layout.policies(ENGINE))
        writes = [
            Put(layout.GATEWAYS, self.gateway.id, encode(self.gateway)),
            Put(layout.targets(self.gateway.id), target.id, encode(target)),
            Put(layout.ENGINES, ENGINE, encode(engine)),
            layout.revise(layout.gateway_revision(self.gateway.id)),
            layout.revise(layout.engine_revision(ENGINE)),
        ]
        for number, one in enumerate(policies):
            record = one if isinstance(one, PolicyRecord) else policy(number, one)
            writes.append(Put(layout.policies(ENGINE), record.id, encode(record)))
        await self.store.transact(writes)
        return self

    async def decide(
        self, caller: Caller, arguments: Mapping[str, Any] | None = None, tool: str = "refund"
    ) -> Decision:
        given_ = {"order": "1", "amount": 5} if arguments is None else arguments
        return await self.decisions.decide(self.gateway, caller, "Orders", tool, given_)

    async def visible(self, caller: Caller) -> set[str]:
        return await self.decisions.visible(self.gateway, caller, ["Orders___refund", "Orders___status"])


def policy(number: int, statement: str, enforcement: str = "ACTIVE", status: str = "ACTIVE") -> PolicyRecord:
    return PolicyRecord(ENGINE, f"policy-{number}", f"p{number}", statement, enforcement, status, NOW, NOW)


@pytest.fixture
def shop(store: ValkeyKeyValueStore) -> Shop:
    return Shop(store)


# Who.


async def test_policies_say_which_agents_and_users_may_call(shop: Shop) -> None:
    """GOV-1, GOV-2: an agent with a user is that user, tagged with the agent."""
    await shop.open(permit(of_agent("support-0123456789") + ' && principal.getTag("agentkeep:agent") like "support-*"'))
    assert (await shop.decide(agent())).allowed
    decided = await shop.decide(agent(session=SessionRef("billing-0123456789", SUPPORT.session_id)))
    assert (decided.allowed, decided.blocks) == (False, True)
    assert decided.reason == "No policy applies to the request (denied by default)."
    assert not (await shop.decide(person())).allowed and not (await shop.decide(OPERATOR)).allowed

    await shop.open(permit('principal == AgentCore::OAuthUser::"alice"'))
    assert (await shop.decide(agent())).allowed and (await shop.decide(person())).allowed
    assert not (await shop.decide(agent(User("bob", "https://issuer")))).allowed

    await shop.open(permit(f'principal == AgentCore::IamEntity::"{OPERATOR.principal}"'))
    assert (await shop.decide(OPERATOR)).allowed and not (await shop.decide(agent())).allowed


async def test_claims_and_the_platforms_own_tags(shop: Shop) -> None:
    for tag, expected in {
        "role": "clerk",
        "groups": "night_shift staff",
        "agentkeep:issuer": "https://issuer",
        "agentkeep:session": SUPPORT.session_id,
    }.items():
        await shop.open(permit(tagged(tag, expected)))
        assert (await shop.decide(agent())).allowed, tag
        assert not (await shop.decide(agent(User("alice")))).allowed or tag == "agentkeep:session"


@pytest.mark.parametrize("condition", ["true", of_agent("support-0123456789")])
async def test_no_claim_makes_anyone_an_agent(shop: Shop, condition: str) -> None:
    """A token says what its issuer likes; which agent calls is not for a token to say."""
    forged = User(
        "alice", "https://evil",
        {"agentkeep:agent": "support-0123456789", "agentkeep:session": "s", "agentkeep:issuer": "https://issuer"},
    )  # fmt: skip
    await shop.open(permit(of_agent("support-0123456789")))
    assert not (await shop.decide(person(forged))).allowed
    assert not (await shop.decide(agent(forged, SessionRef("rogue-0123456789", "s")))).allowed
    assert await shop.visible(person(forged)) == set()
    await shop.open(permit(tagged("agentkeep:issuer", "https://issuer")))
    assert not (await shop.decide(person(forged))).allowed and (await shop.decide(person())).allowed
    await shop.open(permit('principal is AgentCore::OAuthUser && principal.hasTag("agentkeep:else")'))
    assert not (await shop.decide(person(User("a", "i", {"agentkeep:else": "x"})))).allowed


async def test_an_agent_without_a_user_calls_nothing(shop: Shop) -> None:
    """IDN-2, whatever policies say and in whatever mode."""
    for mode in ("ENFORCE", "LOG_ONLY"):
        await shop.open("permit(principal, action, resource);", policy_mode=mode)
        decided = await shop.decide(agent(None))
        assert decided.blocks and "no user" in decided.reason and await shop.visible(agent(None)) == set()


@pytest.mark.parametrize(
    "name",
    ['alice"', 'x", action, resource); permit(principal, action, resource) //', "a\nb", "\x00", "é€😀", "\ud800",
     "a" * 100_000,
     '{"__entity":{"type":"AgentCore::IamEntity","id":"root"}}', "${alice}", "alice\\", "../alice", "ALICE", " alice"],
)  # fmt: skip
async def test_names_are_only_names(shop: Shop, name: str) -> None:
    """Whatever a user, an agent, a claim or a tool is called, it is never read as a policy or as somebody else."""
    await shop.open(permit('principal == AgentCore::OAuthUser::"alice"'))
    odd = User(name, name, {name: name, "role": name})
    for caller in (person(odd), agent(odd, SessionRef(name, name)), Caller(CallerKind.OPERATOR, name, "AKIA")):
        assert not (await shop.decide(caller)).allowed and await shop.visible(caller) == set()
    assert not (await shop.decide(person(), tool=name)).allowed
    assert not (await shop.decisions.decide(shop.gateway, person(), name, "refund", {})).allowed
    assert await shop.decisions.visible(shop.gateway, person(), [name, f"{name}___refund", f"Orders___{name}"]) == set()
    assert (await shop.decide(person())).allowed


# Default deny.


async def test_nothing_is_allowed_by_default(shop: Shop) -> None:
    """GOV-1: no engine, an engine that is not there, one without policies, one whose policies do not count."""
    nothing: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((permit(),), {"policy_engine_id": None}),
        ((permit(),), {"policy_engine_id": "none-0123456789"}),
        ((), {"policy_engine_id": ENGINE}),
        ((policy(0, permit(), status="CREATE_FAILED"),), {}),
        ((policy(0, permit(), status="DELETING"),), {}),
        ((policy(0, permit(), enforcement="LOG_ONLY"),), {}),
        ((permit(action='== AgentCore::Action::"Orders___status"'),), {}),
        ((permit().replace(ARN, ARN[:-1] + "0"),), {}),
        ((permit("false"),), {}),
        ((permit(effect="forbid"),), {}),
        ((permit().replace("Gateway::", "IamEntity::"),), {}),
    ]
    for policies, changes in nothing:
        await shop.open(*policies, **changes)
        for caller in (agent(), person(), OPERATOR):
            decided = await shop.decide(caller)
            assert decided.blocks and decided.reason, (policies, changes)
            assert "Orders___refund" not in await shop.visible(caller)


async def test_a_forbid_wins(shop: Shop) -> None:
    await shop.open(
        permit(),
        "permit(principal, action, resource);",
        permit('context.input.amount.greaterThan(decimal("100.0"))', effect="forbid"),
    )
    allowed = await shop.decide(agent())
    assert allowed.allowed and allowed.determining == ("policy-0", "policy-1")
    decided = await shop.decide(agent(), {"order": "1", "amount": 100.5})
    assert decided.determining == ("policy-2",)
    assert decided.reason == "Policy evaluation denied due to policy-2"


async def test_what_cannot_be_evaluated_denies(shop: Shop) -> None:
    """Cedar leaves out a policy that fails: a forbid left out would be a permit."""
    await shop.open(
        "permit(principal, action, resource);", permit("context.input.count + 9223372036854775807 > 0", effect="forbid")
    )
    for count in (1, 2**62):
        decided = await shop.decide(agent(), {"order": "1", "amount": 1, "count": count})
        assert decided.blocks and "could not be evaluated" in decided.reason
    assert not (await shop.decide(agent(), {"order": "1", "amount": 1})).allowed  # count is not there
    assert (await shop.decide(agent(), {}, tool="status")).allowed
    broken = policy(0, "this is not Cedar")
    await shop.open(broken, permit())
    assert (await shop.decide(agent())).blocks and await shop.visible(agent()) == set()


async def test_a_claim_that_was_left_out_gets_nobody_past_a_forbid(shop: Shop) -> None:
    """A token that says more than is kept could say what a policy forbids."""
    whole, cut = ALICE, User("alice", "https://issuer", {INCOMPLETE_CLAIMS: "1"})
    await shop.open(
        permit(), permit('principal is AgentCore::OAuthUser && principal.hasTag("blocked")', effect="forbid")
    )
    assert (await shop.decide(agent(whole))).allowed and await shop.visible(agent(whole)) == {"Orders___refund"}
    decided = await shop.decide(agent(cut))
    assert decided.blocks and "fewer or shorter claims" in decided.reason and await shop.visible(agent(cut)) == set()
    await shop.open(permit(), permit('context.input.order == "2"', effect="forbid"))
    assert (await shop.decide(agent(cut))).allowed


async def test_observing(shop: Shop) -> None:
    """LOG_ONLY, of the engine and of one policy: decided and told, not enforced."""
    await shop.open(permit("false"), policy_mode="LOG_ONLY")
    decided = await shop.decide(agent())
    assert (decided.allowed, decided.log_only, decided.blocks) == (False, True, False)
    assert await shop.visible(agent()) == {"Orders___refund", "Orders___status"}
    await shop.open(permit(), policy(1, permit(effect="forbid"), enforcement="LOG_ONLY"), policy_mode="ENFORCE")
    decided = await shop.decide(agent())
    assert (decided.allowed, decided.determining, decided.observed) == (True, ("policy-0",), False)
    await shop.open(permit("false"), policy(1, permit(), enforcement="LOG_ONLY"))
    decided = await shop.decide(agent())
    assert (decided.blocks, decided.observed) == (True, True)


async def test_a_change_of_policies_holds_for_the_next_call(shop: Shop) -> None:
    await shop.open(permit())
    assert (await shop.decide(agent())).allowed
    await shop.open(permit(), permit(effect="forbid"))
    assert not (await shop.decide(agent())).allowed


async def test_time(shop: Shop) -> None:
    await shop.open(permit('context.system.now < datetime("2026-06-01")'))
    early, late = datetime(2026, 5, 31, 23, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC)
    decide = shop.decisions.decide
    assert (await decide(shop.gateway, agent(), "Orders", "refund", {}, early)).allowed
    assert not (await decide(shop.gateway, agent(), "Orders", "refund", {}, late)).allowed


# Arguments.

IN_GERMANY = 'context.input has address && context.input.address.country == "DE"'
SOUTH = 'context.input has place && context.input.place has lat && context.input.place.lat.lessThan(decimal("53.0"))'


@pytest.mark.parametrize(
    ("condition", "arguments", "allowed"),
    [
        ('context.input.amount.lessThan(decimal("10.0"))', {"amount": 9.9999}, True),
        ('context.input.amount.lessThan(decimal("10.0"))', {"amount": 9}, True),
        ('context.input.amount.lessThan(decimal("10.0"))', {"amount": 10}, False),
        ('context.input.amount.lessThan(decimal("10.0"))', {"amount": 1e2}, False),
        ('context.input.amount == decimal("10.0")', {"amount": 10.0}, True),
        # Decimals have four places: a finer number equals none of them, and is not ordered.
        ('context.input.amount.lessThan(decimal("10.0"))', {"amount": 9.99999}, False),
        ('context.input.amount != decimal("1.0")', {"amount": 1.00001}, True),
        ('context.input.amount.lessThan(decimal("10.0"))', {"amount": 1e300}, False),
        ('context.input.amount.lessThan(decimal("10.0"))', {"amount": -1e300}, False),
        ('context.input.amount.lessThan(decimal("10.0"))', {"amount": float("nan")}, False),
        ('context.input.amount.lessThan(decimal("10.0"))', {"amount": float("-inf")}, False),
        ("context.input has count && context.input.count < 10", {"count": 9}, True),
        ("context.input has count && context.input.count < 10", {"count": 9.0}, True),
        ("context.input has count && context.input.count < 10", {"count": 9.5}, False),
        ("context.input has count && context.input.count < 10", {"count": 2**63}, False),
        ("context.input has count && context.input.count < 10", {"count": -(2**63) - 1}, False),
        ("context.input has count && context.input.count < 10", {"count": 10**5000}, False),
        ("context.input has count && context.input.count < 10", {"count": None}, False),
        ("context.input has count && context.input.count < 10", {"count": True}, False),
        ("context.input has count && context.input.count < 10", {"count": "9"}, False),
        ("context.input has count && context.input.count < 10", {"count": [9]}, False),
        ("context.input has count && context.input.count < 10", {"count": {"a": 9}}, False),
        ("context.input has count", {}, False),
        ("context.input has count", {"count": None}, True),
        ("context.input has express && context.input.express", {"express": True}, True),
        ("context.input has express && context.input.express", {"express": 1}, False),
        ("context.input has express && context.input.express", {"express": "true"}, False),
        ('context.input.order == "é😀"', {"order": "é😀"}, True),
        ('context.input.order like "A-*"', {"order": "A-1"}, True),
        ('context.input.order like "A-*"', {"order": ["A-1"]}, False),
        ('context.input has notes && context.input.notes.contains("x")', {"notes": ["y", "x"]}, True),
        (IN_GERMANY, {"address": {"country": "DE"}}, True),
        (IN_GERMANY, {"address": {"country": "DE", "more": None}}, True),
        (IN_GERMANY, {"address": ["DE"]}, False),
        (SOUTH, {"place": {"lat": 52.5}}, True),
        (SOUTH, {"place": {"lat": 52.520008}}, False),
        # What a policy does not look at needs not fit anything.
        ('context.input.order == "1"', {"order": "1", "amount": 5.20008, "count": 2**70, "anything": [None]}, True),
    ],
)  # fmt: skip
async def test_conditions_on_arguments(shop: Shop, condition: str, arguments: dict[str, Any], allowed: bool) -> None:
    """GOV-2"""
    await shop.open(permit(condition))
    decided = await shop.decide(agent(), arguments)
    assert decided.allowed is allowed, decided.reason


@pytest.mark.parametrize(
    "argument",
    [
        {"__entity": {"type": "AgentCore::OAuthUser", "id": "alice"}},
        {"__extn": {"fn": "decimal", "arg": "1.0"}},
        {"__extn": {"fn": "unknown", "arg": "x"}},
        {"__expr": "principal"},
        {"a": {"b": [{"__entity": {"type": "AgentCore::OAuthUser", "id": "alice"}, "other": 1}]}},
        object(),
        {1: 2},
        b"bytes",
    ],
)
async def test_arguments_are_never_read_as_anything_but_values(shop: Shop, argument: Any) -> None:
    await shop.open(permit('context.input has anything || context.input.order == "1"'))
    assert (await shop.decide(agent())).allowed
    assert (await shop.decide(agent(), {"order": "1", "anything": argument})).blocks


async def test_arguments_that_nest_without_end(shop: Shop) -> None:
    await shop.open(permit('context.input.order == "1"'))
    deep: Any = "x"
    for _ in range(10_000):
        deep = [deep]
    assert (await shop.decide(agent(), {"order": "1", "anything": deep})).blocks
    assert (await shop.decide(agent(), {"order": "1", "notes": ["x" * 1000] * 1000})).allowed


async def test_a_tool_that_is_not_there_is_not_allowed_by_its_arguments(shop: Shop) -> None:
    await shop.open('permit(principal, action, resource) when { context.input.order == "1" };')
    assert (await shop.decide(agent(), {"order": "1"}, tool="gone")).blocks


# Listing.


@pytest.mark.parametrize(
    ("condition", "shown"),
    [
        ('context.input.amount.lessThan(decimal("10.0"))', True),
        (of_agent("support-0123456789") + ' && context.input.order == "1"', True),
        (of_agent("other-0123456789") + ' && context.input.order == "1"', False),
        ('(' + of_agent("other-0123456789") + ') || context.input.order == "1"', True),
        ('!(context.input.order == "1")', True),
        ('!((' + of_agent("support-0123456789") + ') && !(context.input.order == "1"))', True),
        ('!((' + of_agent("support-0123456789") + ') || context.input.order == "1")', False),
        ('if context.input.order == "1" then false else ' + of_agent("other-0123456789"), True),  # not worked out
        ('if ' + of_agent("other-0123456789") + ' then context.input.order == "1" else false', False),
        ("context.input has count && context.input.count > 1 && false", False),
        ('context.system.now < datetime("2000-01-01") && context.input.order == "1"', False),
        ('{Value: context.input.order, Var: "context"} == {Value: "1", Var: "context"}', True),
        ('context.input has anything && "context" == "context"', True),
    ],
)  # fmt: skip
async def test_tools_are_listed_that_some_call_could_be_allowed_to(shop: Shop, condition: str, shown: bool) -> None:
    """GOV-1: an agent sees only what it could call."""
    await shop.open(permit(condition))
    assert await shop.visible(agent()) == ({"Orders___refund"} if shown else set())


async def test_a_forbid_hides_a_tool_only_where_it_forbids_every_call(shop: Shop) -> None:
    both = {"Orders___refund", "Orders___status"}
    everything = "permit(principal, action, resource);"
    await shop.open(everything, permit('context.input.order == "1"', effect="forbid"))
    assert await shop.visible(agent()) == both
    await shop.open(
        everything, permit('context.input.order == "1" || ' + of_agent("support-0123456789"), effect="forbid")
    )
    assert await shop.visible(agent()) == {"Orders___status"}
    await shop.open(everything, 'forbid(principal, action in AgentCore::Action::"Orders", resource);')
    assert await shop.visible(agent()) == set()


# Size.


async def test_a_thousand_policies_and_tools(shop: Shop) -> None:
    tools = [Tool(f"tool{number}", "", {"type": "object"}) for number in range(1000)]
    policies = [permit(action=f'== AgentCore::Action::"Orders___tool{number}"') for number in range(0, 1000, 2)]
    await shop.open(*policies, tools=tools)
    names = [f"Orders___{tool.name}" for tool in tools]
    assert await shop.decisions.visible(shop.gateway, agent(), names) == set(names[::2])
    assert (await shop.decide(agent(), {}, tool="tool998")).determining == ("policy-499",)
    assert (await shop.decide(agent(), {}, tool="tool999")).blocks


async def test_the_longest_policies(shop: Shop) -> None:
    def of(length: int, unit: str, last: str) -> str:
        filler = unit * ((length - 300) // len(unit))
        return permit(f'context.input.order == "{filler}" || context.input.order == "{last}"')

    long = of(10_000, "x", "1")
    target = TargetRecord("shop-0123456789", "t", "Orders", "READY", {}, [], (REFUND,), NOW, NOW)
    assert await findings(long, {ARN: [target]}, [], True) == []
    await shop.open(*[long] * 50)
    assert (await shop.decide(agent())).allowed and not (await shop.decide(agent(), {"order": "2"})).allowed


# Without a matching permit nothing is ever allowed.

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["order", "amount", "count", "express", "notes", "address", "anything", "__entity"]) | st.text()
tags = st.sampled_from(["role", "agentkeep:agent", "agentkeep:issuer", "groups"]) | st.text()
values = st.sampled_from(["clerk", "support-0123456789", "https://issuer", "alice"]) | st.text()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    arguments=st.dictionaries(names, json_values, max_size=5),
    user=values,
    claims=st.dictionaries(tags, values, max_size=4),
    runtime=st.none() | values,
    tool=st.sampled_from(["refund", "status"]) | st.text(),
)
async def test_without_a_matching_permit_nothing_is_allowed(
    store: ValkeyKeyValueStore,
    arguments: dict[str, Any],
    user: str,
    claims: dict[str, str],
    runtime: str | None,
    tool: str,
) -> None:
    """GOV-1: exactly what the one permit says, whatever callers and arguments there are."""
    shop = _shops.get(id(store))
    if shop is None:
        _shops.clear()
        shop = _shops[id(store)] = await Shop(store).open(
            permit(
                f'{of_agent("support-0123456789")} && {tagged("role", "clerk")} '
                "&& context.input has count && context.input.count < 10"
            ),
            permit('context.input has express && context.input.express == true', effect="forbid"),
        )  # fmt: skip
    someone = User(user, "https://issuer", claims)
    caller = person(someone) if runtime is None else agent(someone, SessionRef(runtime, "s"))
    decided = await shop.decide(caller, arguments, tool)
    count = arguments.get("count")
    matches = (
        tool == "refund"
        and runtime == "support-0123456789"
        and claims.get("role") == "clerk"
        and (type(count) is int or (type(count) is float and count.is_integer()))
        and count < 10
        and arguments.get("express") is not True
    )
    assert not decided.allowed or matches


_shops: dict[int, Shop] = {}


async def test_calls_at_once_decide_as_one_after_another(shop: Shop) -> None:
    await shop.open(permit('context.input.order == "1"'))
    decided = await asyncio.gather(*(shop.decide(agent(), {"order": str(n % 2)}) for n in range(200)))
    assert [one.allowed for one in decided] == [bool(n % 2) for n in range(200)]


odd_schemas = st.recursive(
    json_values | st.sampled_from(["string", "integer", "number", "object", "array", "boolean", "null"]),
    lambda inner: st.dictionaries(
        st.sampled_from(["type", "properties", "required", "items", "$ref", "$defs", "enum", "__extn"]) | st.text(),
        inner,
    ),
    max_leaves=15,
)


@settings(max_examples=40, deadline=None)
@given(schema=st.dictionaries(st.sampled_from(["type", "properties", "required", "$defs"]), odd_schemas))
async def test_a_targets_odd_schemas_keep_nobody_from_writing_policies(schema: dict[str, Any]) -> None:
    """What one target says of its tools is not checked by anyone: it must not stand in the way of the others'."""
    odd = Tool("odd", "", schema)
    targets = [TargetRecord("shop-0123456789", "t" * 10, "Orders", "READY", {}, [], (odd, REFUND), NOW, NOW)]
    assert await findings(permit('context.input.order == "1"'), {ARN: targets}, [], True) == []
    assert await findings(permit("true", action='== AgentCore::Action::"Orders___odd"'), {ARN: targets}, [], True) == []
