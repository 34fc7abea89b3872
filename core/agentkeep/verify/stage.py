"""What is made on the deployment for a run, and removed after it: agents, a memory, a vault's key, a gateway."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from agentkeep.verify.bundle import ENTRY_POINT, probe_zip
from agentkeep.verify.probe.attack import STORAGE, Victim, masked
from agentkeep.verify.probe.endpoint import namespace

__all__ = ["Deployment", "Stage", "Unprepared"]

logger = logging.getLogger(__name__)

BUCKET = "agentkeep-deploy"
READY_SECONDS = 600.0
_DOCUMENT = "https://tool.agentkeep-verify.invalid"  # nobody's: calls that are let through fail there
_TOOLS = "probe"
_LATER = "tool_later"


class Unprepared(Exception):
    """The suite cannot be carried out: what it needs cannot be made."""


class Deployment(Protocol):
    """What is needed of `agentkeep.cli.deployment.Deployment`."""

    @property
    def control(self) -> Any: ...

    @property
    def data(self) -> Any: ...

    def request(self, method: str, path: str, body: bytes = b"") -> bytes: ...


class Stage:
    """`image`: the probe's; None: it is sent as code. `discovery_url`: of the issuer whose tokens the second agent
    takes; None: there is only the first, for which operators speak."""

    def __init__(
        self, deployment: Deployment, *, account: str, image: str | None, discovery_url: str | None,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.id = secrets.token_hex(4)
        self.beginning = f"canary-{secrets.token_hex(8)}-"
        self.memory = self.provider = self.gateway = self._engine = self._gateway_arn = ""
        #: ARNs: [for operators, for tokens].
        self.runtimes: list[str] = []
        self.workloads: dict[str, str] = {}
        self._control = deployment.control
        self._data = deployment.data
        self._deployment = deployment
        self._role = f"arn:aws:iam::{account}:role/agentkeep"
        self._image = image
        self._discovery_url = discovery_url
        self._say = say
        self._removals: list[tuple[str, Callable[[], Any]]] = []

    def make(self, users: Sequence[str]) -> list[Victim]:
        """Everything, and one of everything for each user. Raises Unprepared."""
        try:
            self._say("making a memory, a credential provider and a gateway")
            self._make_memory()
            self._make_provider()
            victims = [self._plant(user) for user in users]
            self._make_gateway(victims)
            self._say("deploying the probe")
            self._make_runtimes()
            return victims
        except (ClientError, BotoCoreError) as error:
            raise Unprepared(f"what the suite needs cannot be made: {error}") from error

    def plant(self, user: str) -> Victim:
        """Of a user who comes later. Raises Unprepared."""
        try:
            victim = self._plant(user)
            victim.tool = f"{_TOOLS}___{_LATER}"
            self._permit(victim)
            return victim
        except (ClientError, BotoCoreError) as error:
            raise Unprepared(f"what a later user needs cannot be made: {error}") from error

    def remove(self) -> list[str]:
        """Whatever was made; returns what could not be removed, with why."""
        left = []
        for what, removal in reversed(self._removals):
            try:
                _patiently(removal)
            except Exception as error:
                left.append(f"{what}: {error}")
        self._removals.clear()
        return left

    # What it makes.

    def _make_memory(self) -> None:
        made = self._control.create_memory(name=f"verify_{self.id}", eventExpiryDuration=7)["memory"]["id"]
        self._removing(f"memory {made}", lambda: self._control.delete_memory(memoryId=made))
        self.memory = made
        self._until(lambda: self._control.get_memory(memoryId=made)["memory"]["status"], "ACTIVE", f"memory {made}")

    def _plant(self, user: str) -> Victim:
        canary = self.beginning + secrets.token_hex(16)
        said = [{"conversational": {"role": "USER", "content": {"text": f"canary of this user: {canary}"}}}]
        event = self._data.create_event(
            memoryId=self.memory, actorId=user, sessionId="s", eventTimestamp=datetime.now(UTC), payload=said
        )
        record = self._data.batch_create_memory_records(
            memoryId=self.memory,
            records=[{
                "requestIdentifier": "r", "namespaces": [namespace(user)], "timestamp": datetime.now(UTC),
                "content": {"text": f"The canary of this user is {canary}."},
            }],
        )  # fmt: skip
        if not record["successfulRecords"]:
            raise Unprepared(f"a record of {user} cannot be made: {record['failedRecords']}")
        return Victim(
            user, memory=self.memory, event=event["event"]["eventId"], canary=masked(canary),
            record=record["successfulRecords"][0]["memoryRecordId"],
        )  # fmt: skip

    def _make_provider(self) -> None:
        name = f"verify-{self.id}"
        self._control.create_api_key_credential_provider(name=name, apiKey=self.beginning + secrets.token_hex(16))
        self._removing(
            f"credential provider {name}", lambda: self._control.delete_api_key_credential_provider(name=name)
        )
        self.provider = name

    def _make_gateway(self, victims: Sequence[Victim]) -> None:
        """A tool for each user, which policies let no other call."""
        control = self._control
        made = control.create_policy_engine(name=f"verify_{self.id}")
        engine = made["policyEngineId"]
        self._removing(f"policy engine {engine}", lambda: control.delete_policy_engine(policyEngineId=engine))
        self._until(lambda: control.get_policy_engine(policyEngineId=engine)["status"], "ACTIVE", "the policy engine")
        gateway = control.create_gateway(
            name=f"verify-{self.id}", roleArn=self._role, protocolType="MCP", authorizerType="AWS_IAM",
            policyEngineConfiguration={"arn": made["policyEngineArn"], "mode": "ENFORCE"},
        )  # fmt: skip
        id = self.gateway = gateway["gatewayId"]
        self._engine, self._gateway_arn = engine, gateway["gatewayArn"]
        self._removing(f"gateway {id}", lambda: control.delete_gateway(gatewayIdentifier=id))
        self._until(lambda: control.get_gateway(gatewayIdentifier=id)["status"], "READY", "the gateway")
        names = [*(f"tool_{number}" for number in range(len(victims))), _LATER]
        paths = {
            f"/{name}": {"get": {"operationId": name, "responses": {"200": {"description": "nothing"}}}}
            for name in names
        }
        document = {"openapi": "3.0.3", "info": {"title": "probe", "version": "1"}, "servers": [{"url": _DOCUMENT}],
                    "paths": paths}  # fmt: skip
        target = control.create_gateway_target(
            gatewayIdentifier=id, name=_TOOLS,
            targetConfiguration={"mcp": {"openApiSchema": {"inlinePayload": json.dumps(document)}}},
        )["targetId"]  # fmt: skip
        self._removing(f"target {target}", lambda: control.delete_gateway_target(gatewayIdentifier=id, targetId=target))
        self._until(
            lambda: control.get_gateway_target(gatewayIdentifier=id, targetId=target)["status"], "READY", "its tools"
        )
        for number, victim in enumerate(victims):
            victim.tool = f"{_TOOLS}___tool_{number}"
            self._permit(victim)

    def _permit(self, victim: Victim) -> None:
        engine, gateway_arn = self._engine, self._gateway_arn
        statement = (
            f'permit(principal == AgentCore::OAuthUser::"{victim.user}", '
            f'action == AgentCore::Action::"{victim.tool}", resource == AgentCore::Gateway::"{gateway_arn}");'
        )
        policy = self._control.create_policy(
            policyEngineId=engine, name=f"verify_{secrets.token_hex(6)}",
            definition={"cedar": {"statement": statement}},
            validationMode="IGNORE_ALL_FINDINGS",
        )["policyId"]  # fmt: skip
        self._removing(f"policy {policy}", lambda: self._control.delete_policy(policyEngineId=engine, policyId=policy))
        self._until(
            lambda: self._control.get_policy(policyEngineId=engine, policyId=policy)["status"], "ACTIVE", "a policy"
        )

    def _make_runtimes(self) -> None:
        made = [self._create_runtime("signed", {})]
        if self._discovery_url is not None:
            authorizer = {"discoveryUrl": self._discovery_url, "allowedAudience": ["agentkeep"]}
            made.append(
                self._create_runtime("tokens", {"authorizerConfiguration": {"customJWTAuthorizer": authorizer}})
            )
        for id in made:
            found = partial(self._control.get_agent_runtime, agentRuntimeId=id)
            self._until(partial(_status, found), "READY", "the probe", partial(_why, found))
            runtime = found()
            self.runtimes.append(runtime["agentRuntimeArn"])
            identity = runtime.get("workloadIdentityDetails", {}).get("workloadIdentityArn", id)
            self.workloads[runtime["agentRuntimeArn"]] = identity.rsplit("/", 1)[-1]
        # Agents may speak to agents of the first kind, for their own user: else refusing another's session proves
        # nothing.
        statement = {"Effect": "Allow", "Principal": {"AWS": self._role}, "Resource": self.runtimes[0],
                     "Action": [f"bedrock-agentcore:InvokeAgentRuntime{more}"
                                for more in ("", "ForUser", "Command")]}  # fmt: skip
        self._control.put_resource_policy(
            resourceArn=self.runtimes[0], policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        )

    def _create_runtime(self, kind: str, more: dict[str, Any]) -> str:
        artifact: dict[str, Any]
        if self._image is not None:
            artifact = {"containerConfiguration": {"containerUri": self._image}}
        else:
            archive = probe_zip()
            key = f"verify_probe/{sha256(archive).hexdigest()[:16]}.zip"
            self._deployment.request("PUT", f"/artifacts/{BUCKET}/{key}", archive)
            artifact = {
                "codeConfiguration": {
                    "code": {"s3": {"bucket": BUCKET, "prefix": key}}, "runtime": "PYTHON_3_11",
                    "entryPoint": [ENTRY_POINT],
                }
            }  # fmt: skip
        made = self._control.create_agent_runtime(
            agentRuntimeName=f"verify_{kind}_{self.id}", agentRuntimeArtifact=artifact, roleArn=self._role,
            networkConfiguration={"networkMode": "PUBLIC"},
            filesystemConfigurations=[{"sessionStorage": {"mountPath": STORAGE}}],
            environmentVariables={"RES_OPTIONS": "timeout:1 attempts:1"},  # names fail either way; sooner so
            **more,
        )  # fmt: skip
        id = str(made["agentRuntimeId"])
        self._removing(f"agent runtime {id}", lambda: self._control.delete_agent_runtime(agentRuntimeId=id))
        return id

    def _removing(self, what: str, removal: Callable[[], Any]) -> None:
        self._removals.append((what, removal))

    @staticmethod
    def _until(status: Callable[[], str], wanted: str, what: str, why: Callable[[], Any] = lambda: None) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while (found := status()) != wanted:
            if "FAILED" in found or time.monotonic() > deadline:
                raise Unprepared(f"{what} is {found}: {why() or 'no reason is given'}")
            time.sleep(0.1)


def _status(found: Callable[[], Any]) -> str:
    return str(found()["status"])


def _why(found: Callable[[], Any]) -> str:
    return str(found().get("failureReason", ""))


def _patiently(removal: Callable[[], Any]) -> None:
    """What depends on something that is being removed is refused for a moment."""
    for attempt in range(20):
        try:
            removal()
            return
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code == "ResourceNotFoundException":
                return
            if code != "ConflictException" or attempt == 19:
                raise
            time.sleep(0.5)
