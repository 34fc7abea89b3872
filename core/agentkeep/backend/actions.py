"""What an operation is to a policy: its action, the resources it is on, and the condition keys of its request.

Names are IAM's: `bedrock-agentcore:<Operation>`; models are Bedrock's (`Converse` asks for `bedrock:InvokeModel`). A
request that names resources in a form other than the one checked here is refused, so that what was allowed and what
happens are about the same. Source: "Actions, resources, and condition keys for Amazon Bedrock AgentCore" in the service
authorization reference; the developer guide's notes on condition keys of memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from agentkeep.core.call import Call, Caller
from agentkeep.core.errors import AccessDeniedException
from agentkeep.core.identifiers import Deployment
from agentkeep.core.permissions import READ_VARIABLES, authorized
from agentkeep.wire.model import service

__all__ = ["FURTHER_ACTIONS", "RESOURCES", "action", "authorized_call", "condition_keys", "forms", "resources"]

_MODEL_ACTIONS: Final = {"Converse": "InvokeModel", "ConverseStream": "InvokeModelWithResponseStream"}
_MEMORY: Final = "memory/{}"
_RUNTIME: Final = "runtime/{}"
_ENDPOINT: Final = "runtime/{}/runtime-endpoint/{}"
_GATEWAY: Final = "gateway/{}"
_ENGINE: Final = "policy-engine/{}"
_POLICY: Final = "policy-engine/{}/policy/{}"
_WORKLOAD: Final = "workload-identity-directory/default/workload-identity/{}"
_VAULT: Final = "token-vault/{}"
_API_KEY: Final = "token-vault/default/apikeycredentialprovider/{}"
_OAUTH2: Final = "token-vault/default/oauth2credentialprovider/{}"
#: The forms of all resources there are, `{}` being a name.
RESOURCES: Final = (
    _MEMORY, _RUNTIME, _ENDPOINT, _GATEWAY, _ENGINE, _POLICY, _WORKLOAD, _VAULT, _API_KEY, _OAUTH2,
)  # fmt: skip

_FURTHER_INVOCATIONS: Final = (
    "InvokeAgentRuntimeForUser", "InvokeAgentRuntimeCommandForUser", "InvokeAgentRuntimeWithWebSocketStream",
    "InvokeAgentRuntimeWithWebSocketStreamForUser", "GetAgentCardForUser",
)  # fmt: skip
_GIVE_ROLE: Final = "iam:PassRole"
#: What clients do that the service models have no operation for, or that asks for more than its operation; and on what.
FURTHER_ACTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    **{f"bedrock-agentcore:{name}": (_RUNTIME, _ENDPOINT) for name in _FURTHER_INVOCATIONS},
    "bedrock-agentcore:InvokeGateway": (_GATEWAY,),
    READ_VARIABLES: (_RUNTIME,),
    _GIVE_ROLE: ("arn:aws:iam::*:role/{}",),
}
#: Members that give a resource a role, by whose name other agents' resource policies know it.
_ROLES: Final = ("roleArn", "memoryExecutionRoleArn")

#: What is on any resource, named by its ARN.
_ANY: Final = "resourceArn"
_MODELS: Final = "arn:aws:bedrock:*::foundation-model/*"
_GUARDRAILS: Final = "arn:aws:bedrock:*:*:guardrail/*"
#: Inference profiles, provisioned throughput and the like, of whatever account: known by their ARN only.
_OF_BEDROCK: Final = "arn:aws:bedrock:*:*:*"
#: Nothing in particular.
_NONE: Final = "*"

#: Members that name a resource; of several in a request, the first. With which others, one that is in it.
_BY_MEMBER: Final[Mapping[str, tuple[str, ...]]] = {
    "memoryId": (_MEMORY,),
    "agentRuntimeId": (_RUNTIME, _ENDPOINT),
    "agentRuntimeArn": (_RUNTIME, _ENDPOINT),
    "gatewayIdentifier": (_GATEWAY,),
    "policyEngineId": (_ENGINE, _POLICY),
    "workloadName": (_WORKLOAD,),
}
_WITHIN: Final = {_ENDPOINT: ("endpointName", "qualifier"), _POLICY: ("policyId",)}
#: Operations whose resource is in a member that others call otherwise.
_NAMED: Final = (("WorkloadIdentity", _WORKLOAD), ("ApiKeyCredentialProvider", _API_KEY),
                 ("Oauth2CredentialProvider", _OAUTH2))  # fmt: skip
_PROVIDERS: Final = {"GetResourceApiKey": _API_KEY, "GetResourceOauth2Token": _OAUTH2}
_OF_VAULT: Final = (
    "GetTokenVault", "SetTokenVaultCMK", "ResetTokenVaultKeyMaterial", "CompleteResourceTokenAuth"
)  # fmt: skip
_FOR_USER: Final = ("InvokeAgentRuntime", "InvokeAgentRuntimeCommand", "GetAgentCard")
#: Of what a request names without saying which.
_DEFAULTS: Final = {"qualifier": "DEFAULT", "tokenVaultId": "default"}

_EVENTS: Final = ("actorId", "sessionId")
_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("CreateEvent", "GetEvent", "DeleteEvent", "ListEvents", "IngestData"), _EVENTS),
    "ListSessions": ("actorId",),
    **dict.fromkeys(("ListMemoryRecords", "RetrieveMemoryRecords"), ("namespace", "namespacePath")),
    **dict.fromkeys(("GetMemoryRecord", "DeleteMemoryRecord"), ("namespace",)),
    "GetWorkloadAccessTokenForUserId": ("userid",),
}
_MEMBER_OF_KEY: Final = {"userid": "userId"}

_NAME: Final = re.compile(r"[\w.-]{1,255}", re.ASCII)
_MODEL: Final = re.compile(r"[\w.:/-]{1,256}", re.ASCII)
_BEDROCK_ARN: Final = re.compile(r"arn:aws:bedrock:[a-z0-9-]*:[0-9]*:[\w.:/-]{1,256}", re.ASCII)


def action(service_name: str, operation: str) -> str:
    if service_name == "bedrock-runtime":
        return f"bedrock:{_MODEL_ACTIONS.get(operation, operation)}"
    return f"bedrock-agentcore:{operation}"


def condition_keys(operation: str) -> frozenset[str]:
    """Those that requests of this operation have, in lower case."""
    return frozenset(f"bedrock-agentcore:{key}".lower() for key in _KEYS.get(operation, ()))


def authorized_call(call: Call, request: Mapping[str, Any]) -> Caller:
    """The caller as the operation is to know it. Raises AccessDeniedException for a role's that may not call it."""
    grant = call.caller.grant
    if grant is None:
        return authorized(call.caller, action(call.service, call.operation), ())
    asked, on = action(call.service, call.operation), resources(call, request, grant.deployment)
    if call.operation in _FOR_USER and request.get("runtimeUserId") is not None:
        authorized(call.caller, f"{asked}ForUser", on)
    for member in _ROLES:
        if member in request:
            authorized(call.caller, _GIVE_ROLE, [str(request[member])])
    return authorized(call.caller, asked, on, _context(call.operation, request))


def forms(service_name: str, operation: str) -> tuple[str, ...]:
    """The forms of the resources that requests of this operation are on: of `RESOURCES`, patterns of Bedrock's, or "*":
    it is on nothing in particular."""
    return tuple(form for form, _ in _plan(service_name, operation))


def resources(call: Call, request: Mapping[str, Any], deployment: Deployment) -> tuple[str, ...]:
    """The ARNs of what a request is on. Raises AccessDeniedException for names that no resource here has."""
    found = []
    for form, members in _plan(call.service, call.operation):
        if form == _NONE:
            found.append(form)
        elif members == (_ANY,):
            if not found:
                found.append(_arn(str(request[_ANY]), deployment))
        elif form in (_MODELS, _GUARDRAILS):
            found.append(_bedrock(form, str(request[members[0]]), deployment))
        elif form == _OF_BEDROCK:
            continue  # another form of the same
        else:
            given = [request.get(member, _DEFAULTS.get(member)) for member in members]
            if None not in given:
                names = [_name(str(one), form, deployment) for one in given]
                found.append(deployment.arn(form.format(*names)))
    return tuple(found)


@cache
def _plan(service_name: str, operation: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The forms of an operation's resources, each with the members that it is made of."""
    model = service(service_name).operation(operation).input
    members = model.members if model is not None else {}
    if service_name == "bedrock-runtime":
        form, member = (_MODELS, "modelId") if "modelId" in members else (_GUARDRAILS, "guardrailIdentifier")
        return ((form, (member,)), (_OF_BEDROCK, (member,)))
    if _ANY in members:
        return tuple((form, (_ANY,)) for form in RESOURCES)
    named = next((form for kind, form in _NAMED if operation.endswith(kind)), None)
    if named is not None and "name" in members:
        return ((named, ("name",)),)
    if operation in _PROVIDERS:
        return ((_PROVIDERS[operation], ("resourceCredentialProviderName",)),)
    if operation in _OF_VAULT:
        return ((_VAULT, ("tokenVaultId",)),)
    for member, (form, *inner) in _BY_MEMBER.items():
        if member in members:
            further = [(deeper, (member, one)) for deeper in inner for one in _WITHIN[deeper] if one in members]
            return ((form, (member,)), *further)
    return ((_NONE, ()),)


def _name(given: str, form: str, deployment: Deployment) -> str:
    """Of a resource of this form, or of the one it is in, that is given by its name or its ARN."""
    whole = deployment.arn(form.partition("{}")[0] + "{}")
    if _form(whole).fullmatch(given):
        return given.rpartition("/")[2]
    if _NAME.fullmatch(given):
        return given
    raise AccessDeniedException(f"{given!r} names no resource of this deployment")


def _arn(given: str, deployment: Deployment) -> str:
    """A resource given by its ARN, in any of the forms."""
    for form in RESOURCES:
        if _form(deployment.arn(form)).fullmatch(given):
            return given
    raise AccessDeniedException(f"{given!r} names no resource of this deployment")


def _form(arn: str) -> re.Pattern[str]:
    return re.compile(_NAME.pattern.join(map(re.escape, arn.split("{}"))), re.ASCII)


def _bedrock(form: str, given: str, deployment: Deployment) -> str:
    """By the ARN that is given, or that a name has here: what is given is what Bedrock will be asked for."""
    if not (_BEDROCK_ARN if given.startswith("arn:") else _MODEL).fullmatch(given):
        raise AccessDeniedException(f"{given!r} names no model or guardrail")
    if given.startswith("arn:"):
        return given
    account = "" if form == _MODELS else deployment.account
    return f"arn:aws:bedrock:{deployment.region}:{account}:{form.rpartition(':')[2][:-1]}{given}"


def _context(operation: str, request: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key in _KEYS.get(operation, ()):
        value = request.get(_MEMBER_OF_KEY.get(key, key))
        if isinstance(value, str):
            found[f"bedrock-agentcore:{key}".lower()] = _path(value) if key.startswith("namespace") else value
    return found


def _path(namespace: str) -> str:
    """As memory reads it: with a slash before and behind, however it was written."""
    inner = namespace.strip("/")
    return f"/{inner}/" if inner else "/"
