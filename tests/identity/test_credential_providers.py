"""Credential providers, as operations of the plane: API keys, OAuth2 clients of every vendor, and the vault behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from botocore.session import get_session

from agentkeep.backend.own import SelfBackend
from agentkeep.core.call import Call, Caller, CallerKind, SessionRef, User
from agentkeep.core.errors import (
    AccessDeniedException,
    ConflictException,
    InternalServerException,
    ResourceNotFoundException,
    ServiceQuotaExceededException,
    UnauthorizedException,
    ValidationException,
)
from agentkeep.identity.master_key import FileMasterKey
from agentkeep.identity.oauth2.vendors import VENDORS
from agentkeep.identity.operations import IdentityPlane
from agentkeep.identity.settings import IdentitySettings
from agentkeep.storage.interface import Put, partition
from agentkeep.storage.valkey import ValkeyKeyValueStore

ARN = "arn:aws:bedrock-agentcore:us-west-2:123456789012:token-vault/default/"
SECRET_ARN = "arn:aws:secretsmanager:us-west-2:123456789012:secret:bedrock-agentcore-identity!default/"
METADATA = {
    "issuer": "https://idp.example",
    "authorizationEndpoint": "https://idp.example/authorize",
    "tokenEndpoint": "https://idp.example/token",
}


def custom(**changes: Any) -> dict[str, Any]:
    """The union's custom member; None removes one of its members."""
    config = {
        "oauthDiscovery": {"discoveryUrl": "https://idp.example/.well-known/openid-configuration"},
        "clientId": "agent",
        "clientSecret": "s3cret",
        **changes,
    }
    return {"customOauth2ProviderConfig": {name: value for name, value in config.items() if value is not None}}


def oauth2(name: str = "idp", vendor: str = "CustomOauth2", config: dict[str, Any] | None = None) -> Any:
    return {"name": name, "credentialProviderVendor": vendor, "oauth2ProviderConfigInput": config or custom()}


async def token_of(plane: IdentityPlane, operator: Call, user: str = "alice") -> str:
    """A workload access token of the workload `agent`."""
    try:
        await plane.create_workload_identity(operator, {"name": "agent"})
    except ConflictException:
        pass
    request: Any = {"workloadName": "agent", "userId": user}
    return (await plane.get_workload_access_token_for_user_id(operator, request))["workloadAccessToken"]


async def key_of(plane: IdentityPlane, call: Call, token: str, provider: str = "weather") -> str:
    request: Any = {"workloadIdentityToken": token, "resourceCredentialProviderName": provider}
    return (await plane.get_resource_api_key(call, request))["apiKey"]


# API keys.


async def test_the_life_of_an_api_key(plane: IdentityPlane, operator: Call, clock: Any) -> None:
    token = await token_of(plane, operator)
    created = await plane.create_api_key_credential_provider(operator, {"name": "weather", "apiKey": "k-1"})
    secret_arn = created["apiKeySecretArn"]["secretArn"]
    assert secret_arn.startswith(SECRET_ARN + "apikey/weather-")
    assert created == {
        "name": "weather",
        "credentialProviderArn": ARN + "apikeycredentialprovider/weather",
        "apiKeySecretArn": {"secretArn": secret_arn},
        "apiKeySecretSource": "MANAGED",
    }
    first = await plane.get_api_key_credential_provider(operator, {"name": "weather"})
    assert {name: first[name] for name in created} == created  # type: ignore[literal-required]
    assert first["createdTime"] == first["lastUpdatedTime"]
    assert "k-1" not in str(first)
    assert await key_of(plane, operator, token) == "k-1"

    clock.move(5)
    updated = await plane.update_api_key_credential_provider(operator, {"name": "weather", "apiKey": "k-2"})
    assert (updated["lastUpdatedTime"] - updated["createdTime"]).total_seconds() == 5
    assert updated["apiKeySecretArn"] == {"secretArn": secret_arn}
    assert await key_of(plane, operator, token) == "k-2"

    assert await plane.delete_api_key_credential_provider(operator, {"name": "weather"}) == {}
    for gone in (
        plane.get_api_key_credential_provider(operator, {"name": "weather"}),
        plane.update_api_key_credential_provider(operator, {"name": "weather", "apiKey": "k-3"}),
        plane.delete_api_key_credential_provider(operator, {"name": "weather"}),
        key_of(plane, operator, token),
    ):
        with pytest.raises(ResourceNotFoundException, match="no API key credential provider named weather"):
            await gone


async def test_names_are_taken_once_and_per_kind(plane: IdentityPlane, operator: Call) -> None:
    results = await asyncio.gather(
        *(plane.create_api_key_credential_provider(operator, {"name": "one", "apiKey": f"k-{n}"}) for n in range(5)),
        return_exceptions=True,
    )
    assert sum(isinstance(result, dict) for result in results) == 1
    assert sum(isinstance(result, ConflictException) for result in results) == 4
    winner = next(n for n, result in enumerate(results) if isinstance(result, dict))
    assert await key_of(plane, operator, await token_of(plane, operator), "one") == f"k-{winner}"
    await plane.create_oauth2_credential_provider(operator, oauth2("one"))
    with pytest.raises(ConflictException, match="already an OAuth2 credential provider named one"):
        await plane.create_oauth2_credential_provider(operator, oauth2("one"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "apiKey: is needed"),
        ({"apiKey": ""}, "apiKey: is needed"),
        ({"apiKeySecretSource": "MANAGED"}, "apiKey: is needed"),
        ({"apiKeySecretSource": "EXTERNAL"}, "apiKeySecretSource: EXTERNAL, a secret in AWS Secrets Manager, is not"),
        (
            {"apiKey": "k-1", "apiKeySecretConfig": {"secretId": "weather", "jsonKey": "key"}},
            "apiKeySecretSource: EXTERNAL, a secret in AWS Secrets Manager, is not supported by agentkeep yet",
        ),
    ],
)
async def test_keys_that_cannot_be_kept(plane: IdentityPlane, operator: Call, given: Any, message: str) -> None:
    await plane.create_api_key_credential_provider(operator, {"name": "kept", "apiKey": "k-0"})
    for refused in (
        plane.create_api_key_credential_provider(operator, {"name": "new", **given}),
        plane.update_api_key_credential_provider(operator, {"name": "kept", **given}),
    ):
        with pytest.raises(ValidationException, match=message) as error:
            await refused
        assert len(error.value.fields) == 1
    assert await key_of(plane, operator, await token_of(plane, operator), "kept") == "k-0"


async def test_listing(plane: IdentityPlane, operator: Call) -> None:
    names = [f"p-{number:02}" for number in range(23)]
    for name in reversed(names):
        await plane.create_api_key_credential_provider(operator, {"name": name, "apiKey": "k"})
        await plane.create_oauth2_credential_provider(operator, oauth2(name))
    lists: list[tuple[Any, Any, int]] = [
        (plane.list_api_key_credential_providers, None, 1),
        (plane.list_api_key_credential_providers, 5, 5),
        (plane.list_oauth2_credential_providers, None, 2),
        (plane.list_oauth2_credential_providers, 20, 2),
    ]
    for operation, size, pages in lists:
        listed: list[str] = []
        request: Any = {} if size is None else {"maxResults": size}
        count = 0
        while count == 0 or "nextToken" in request:
            page = await operation(operator, request)
            request = {**request, "nextToken": page.get("nextToken")}
            if request["nextToken"] is None:
                del request["nextToken"]
            listed += [one["name"] for one in page["credentialProviders"]]
            assert all(one["createdTime"] <= one["lastUpdatedTime"] for one in page["credentialProviders"])
            count += 1
        assert (listed, count) == (names, pages)
        with pytest.raises(ValidationException, match="nextToken"):
            await operation(operator, {"nextToken": "!"})


async def test_there_are_so_many_of_each_kind(make_plane: Callable[..., IdentityPlane], operator: Call) -> None:
    plane = make_plane(settings=IdentitySettings(credential_providers=2))
    for name in ("one", "two"):
        await plane.create_api_key_credential_provider(operator, {"name": name, "apiKey": "k"})
    with pytest.raises(ServiceQuotaExceededException, match="AGENTKEEP_IDENTITY_CREDENTIAL_PROVIDERS"):
        await plane.create_api_key_credential_provider(operator, {"name": "three", "apiKey": "k"})
    await plane.create_oauth2_credential_provider(operator, oauth2("three"))
    await plane.delete_api_key_credential_provider(operator, {"name": "one"})
    await plane.create_api_key_credential_provider(operator, {"name": "three", "apiKey": "k"})


# OAuth2.


async def test_the_life_of_an_oauth2_client(
    make_plane: Callable[..., IdentityPlane], operator: Call, clock: Any
) -> None:
    plane = make_plane(public_url="https://agents.example/")
    created = await plane.create_oauth2_credential_provider(operator, oauth2())
    base, _, callback = created["callbackUrl"].rpartition("/")
    assert base == "https://agents.example/identities/oauth2/callback"
    UUID(callback)
    assert created["clientSecretArn"]["secretArn"].startswith(SECRET_ARN + "oauth2/idp-")
    output = {
        "oauthDiscovery": {"discoveryUrl": "https://idp.example/.well-known/openid-configuration"},
        "clientId": "agent",
    }
    assert created["oauth2ProviderConfigOutput"] == {"customOauth2ProviderConfig": output}
    assert created["credentialProviderArn"] == ARN + "oauth2credentialprovider/idp"
    assert (created["status"], created["clientSecretSource"]) == ("READY", "MANAGED")
    got = await plane.get_oauth2_credential_provider(operator, {"name": "idp"})
    assert {name: got[name] for name in created} == created  # type: ignore[literal-required]
    assert got["credentialProviderVendor"] == "CustomOauth2"

    clock.move(5)
    exchange = {
        "grantType": "TOKEN_EXCHANGE",
        "tokenExchangeGrantTypeConfig": {"actorTokenContent": "M2M", "actorTokenScopes": ["act"]},
    }
    changed = custom(
        oauthDiscovery={
            "authorizationServerMetadata": {**METADATA, "tokenEndpointAuthMethods": ["client_secret_post"]}
        },
        clientId="other",
        clientAuthenticationMethod="CLIENT_SECRET_POST",
        onBehalfOfTokenExchangeConfig=exchange,
    )
    updated = await plane.update_oauth2_credential_provider(operator, oauth2(config=changed))
    assert updated["callbackUrl"] == created["callbackUrl"], "it is registered with the provider"
    assert updated["clientSecretArn"] == created["clientSecretArn"]
    assert (updated["lastUpdatedTime"] - updated["createdTime"]).total_seconds() == 5
    kept = dict(changed["customOauth2ProviderConfig"])
    del kept["clientSecret"]
    assert updated["oauth2ProviderConfigOutput"] == {"customOauth2ProviderConfig": kept}

    elsewhere = make_plane(public_url="http://127.0.0.1:9999")
    moved = await elsewhere.get_oauth2_credential_provider(operator, {"name": "idp"})
    assert moved["callbackUrl"] == f"http://127.0.0.1:9999/identities/oauth2/callback/{callback}"

    await plane.delete_oauth2_credential_provider(operator, {"name": "idp"})
    for gone in (
        plane.get_oauth2_credential_provider(operator, {"name": "idp"}),
        plane.update_oauth2_credential_provider(operator, oauth2()),
        plane.delete_oauth2_credential_provider(operator, {"name": "idp"}),
    ):
        with pytest.raises(ResourceNotFoundException, match="no OAuth2 credential provider named idp"):
            await gone
    again = await plane.create_oauth2_credential_provider(operator, oauth2())
    assert again["callbackUrl"] != created["callbackUrl"]


def test_every_vendor_of_the_model_is_known() -> None:
    model = get_session().get_service_model("bedrock-agentcore-control")
    assert set(VENDORS) == set(model.shape_for("CredentialProviderVendorType").enum)
    members = set(model.shape_for("Oauth2ProviderConfigInput").members)
    assert {vendor.member for vendor in VENDORS.values()} == members
    assert members == set(model.shape_for("Oauth2ProviderConfigOutput").members)


@pytest.mark.parametrize("vendor", VENDORS)
async def test_each_vendor(plane: IdentityPlane, operator: Call, vendor: str) -> None:
    """The answer has the input's member of the union, where the endpoints are, and no secret."""
    client = {"clientId": "agent", "clientSecret": "s3cret"}
    member = VENDORS[vendor].member
    tenant = member == "includedOauth2ProviderConfig" and VENDORS[vendor].default is None
    config = custom() if vendor == "CustomOauth2" else {member: {**client, **(METADATA if tenant else {})}}
    created = await plane.create_oauth2_credential_provider(operator, oauth2("one", vendor, config))
    (only, output), = created["oauth2ProviderConfigOutput"].items()  # fmt: skip
    assert only == member
    assert output["clientId"] == "agent"  # type: ignore[index]
    (url, *_) = str(output["oauthDiscovery"]).split("'https://")[1:]  # type: ignore[index]
    assert url
    if tenant:
        metadata = {**METADATA, "responseTypes": ["code"]}
        assert output["oauthDiscovery"] == {"authorizationServerMetadata": metadata}  # type: ignore[index]
    assert "s3cret" not in str(created)
    wrong = custom() if vendor != "CustomOauth2" else {"googleOauth2ProviderConfig": client}
    with pytest.raises(ValidationException, match=f"does not fit {vendor}, which takes {member}"):
        await plane.create_oauth2_credential_provider(operator, oauth2("two", vendor, wrong))


async def test_endpoints_of_tenants(plane: IdentityPlane, operator: Call) -> None:
    async def discovery(vendor: str, member: str, **more: str) -> Any:
        config = {member: {"clientId": "agent", "clientSecret": "s3cret", **more}}
        name = f"p{len(listed)}"
        listed.append(name)
        created = await plane.create_oauth2_credential_provider(operator, oauth2(name, vendor, config))
        output: Any = created["oauth2ProviderConfigOutput"]
        return output[member]["oauthDiscovery"]

    listed: list[str] = []
    microsoft, included = "microsoftOauth2ProviderConfig", "includedOauth2ProviderConfig"
    v2 = "v2.0/.well-known/openid-configuration"
    assert await discovery("MicrosoftOauth2", microsoft) == {
        "discoveryUrl": f"https://login.microsoftonline.com/common/{v2}"
    }
    assert await discovery("MicrosoftOauth2", microsoft, tenantId="a/../b") == {
        "discoveryUrl": f"https://login.microsoftonline.com/a%2F..%2Fb/{v2}"
    }
    assert await discovery("OktaOauth2", included, issuer="https://acme.example/oauth2/default/") == {
        "discoveryUrl": "https://acme.example/oauth2/default/.well-known/openid-configuration"
    }
    own = await discovery("SpotifyOauth2", included, **METADATA)
    assert own == {"authorizationServerMetadata": {**METADATA, "responseTypes": ["code"]}}
    with pytest.raises(ValidationException) as error:
        await discovery("CognitoOauth2", included)
    assert [field.name.rpartition(".")[2] for field in error.value.fields] == [
        "issuer", "authorizationEndpoint", "tokenEndpoint",
    ]  # fmt: skip
    with pytest.raises(ValidationException) as error:
        await discovery("ZoomOauth2", included, tokenEndpoint="http://zoom.example/token")
    assert [field.name.rpartition(".")[2] for field in error.value.fields] == [
        "tokenEndpoint", "issuer", "authorizationEndpoint",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (custom(clientId=None, clientSecret=None), ["clientId", "clientSecret"]),
        (custom(clientSecret=""), ["clientSecret"]),
        (custom(clientSecretSource="EXTERNAL"), ["clientSecretSource"]),
        (custom(clientSecret=None, clientSecretConfig={"secretId": "s", "jsonKey": "k"}), ["clientSecretSource"]),
        (custom(clientAuthenticationMethod="PRIVATE_KEY_JWT", privateKeyJwtConfig={}),
         ["privateKeyJwtConfig", "clientAuthenticationMethod"]),
        (custom(clientAuthenticationMethod="AWS_IAM_ID_TOKEN_JWT"), ["clientAuthenticationMethod"]),
        (custom(privateEndpoint={}, privateEndpointOverrides=[], certificateConfigurations=[{}]),
         ["privateEndpoint", "privateEndpointOverrides", "certificateConfigurations"]),
        (custom(oauthDiscovery={"discoveryUrl": "http://idp.example/.well-known/openid-configuration"}),
         ["oauthDiscovery.discoveryUrl"]),
        (custom(oauthDiscovery={"discoveryUrl": "https://u:hunter2@idp.example/.well-known/openid-configuration"}),
         ["oauthDiscovery.discoveryUrl"]),
        (custom(oauthDiscovery={"authorizationServerMetadata": {**METADATA, "tokenEndpoint": "ftp://idp.example"}}),
         ["oauthDiscovery.authorizationServerMetadata.tokenEndpoint"]),
        (custom(onBehalfOfTokenExchangeConfig={"grantType": "JWT_AUTHORIZATION_GRANT",
                                               "tokenExchangeGrantTypeConfig": {"actorTokenContent": "NONE"}}),
         ["onBehalfOfTokenExchangeConfig.tokenExchangeGrantTypeConfig"]),
        (custom(onBehalfOfTokenExchangeConfig={"grantType": "TOKEN_EXCHANGE", "tokenExchangeGrantTypeConfig": {
            "actorTokenContent": "AWS_IAM_ID_TOKEN_JWT"}}),
         ["onBehalfOfTokenExchangeConfig.tokenExchangeGrantTypeConfig.actorTokenContent"]),
        (custom(onBehalfOfTokenExchangeConfig={"grantType": "TOKEN_EXCHANGE", "tokenExchangeGrantTypeConfig": {
            "actorTokenContent": "NONE", "actorTokenScopes": ["act"]}}),
         ["onBehalfOfTokenExchangeConfig.tokenExchangeGrantTypeConfig.actorTokenScopes"]),
        (custom(clientId=None, clientSecret=None, onBehalfOfTokenExchangeConfig={
            "grantType": "TOKEN_EXCHANGE", "tokenExchangeGrantTypeConfig": {"actorTokenContent": "M2M"},
            "onBehalfOfAuthenticationConfig": {"clientAuthenticationMethod": "NO_CLIENT"}}),
         ["clientId", "clientSecret"]),
    ],
)  # fmt: skip
async def test_clients_that_cannot_be_honoured(
    plane: IdentityPlane, operator: Call, config: Any, fields: list[str]
) -> None:
    """Every fault is named, at creation rather than when a user waits; what is wrong in a URL is not repeated."""
    await plane.create_oauth2_credential_provider(operator, oauth2("kept"))
    before = await plane.get_oauth2_credential_provider(operator, {"name": "kept"})
    for refused in (
        plane.create_oauth2_credential_provider(operator, oauth2("new", config=config)),
        plane.update_oauth2_credential_provider(operator, oauth2("kept", config=config)),
    ):
        with pytest.raises(ValidationException) as error:
            await refused
        prefix = "oauth2ProviderConfigInput.customOauth2ProviderConfig."
        assert [field.name.removeprefix(prefix) for field in error.value.fields] == fields
        assert "hunter2" not in error.value.message
    assert await plane.get_oauth2_credential_provider(operator, {"name": "kept"}) == before


async def test_a_provider_without_a_client(plane: IdentityPlane, operator: Call) -> None:
    """Exchange on behalf of a user needs no client where the authorization server asks for none."""
    config = custom(
        clientId=None,
        clientSecret=None,
        onBehalfOfTokenExchangeConfig={
            "grantType": "JWT_AUTHORIZATION_GRANT",
            "onBehalfOfAuthenticationConfig": {"clientAuthenticationMethod": "NO_CLIENT"},
        },
    )
    created = await plane.create_oauth2_credential_provider(operator, oauth2(config=config))
    assert "clientId" not in created["oauth2ProviderConfigOutput"]["customOauth2ProviderConfig"]
    assert created["clientSecretArn"]["secretArn"]


async def test_a_stored_secret_cannot_be_sent_elsewhere(plane: IdentityPlane, operator: Call) -> None:
    """IDN-3: whoever changes endpoints or vendor must know the secret."""
    await plane.create_oauth2_credential_provider(operator, oauth2())
    moved = custom(oauthDiscovery={"authorizationServerMetadata": METADATA}, clientSecret=None)
    with pytest.raises(ValidationException, match="clientSecret: is needed"):
        await plane.update_oauth2_credential_provider(operator, oauth2(config=moved))
    google = {"googleOauth2ProviderConfig": {"clientId": "a", "clientSecret": "b"}}
    with pytest.raises(ValidationException, match="is of CustomOauth2, which cannot be changed"):
        await plane.update_oauth2_credential_provider(operator, oauth2(vendor="GoogleOauth2", config=google))


# Tags and the vault.


async def test_tags(plane: IdentityPlane, operator: Call) -> None:
    await plane.create_api_key_credential_provider(operator, {"name": "one", "apiKey": "k", "tags": {"team": "red"}})
    await plane.create_oauth2_credential_provider(operator, {**oauth2("one"), "tags": {"team": "blue"}})
    backend = SelfBackend([plane, Other()])
    for kind, team in (("apikeycredentialprovider", "red"), ("oauth2credentialprovider", "blue")):
        arn = f"{ARN}{kind}/one"

        async def ask(operation: str, arn: str = arn, **request: Any) -> Any:
            call = Call("bedrock-agentcore-control", operation, operator.caller, "request-1")
            return await backend.invoke(call, {"resourceArn": arn, **request})

        assert await ask("ListTagsForResource") == {"tags": {"team": team}}
        await ask("TagResource", tags={"env": "dev"})
        await ask("UntagResource", tagKeys=["team", "absent"])
        assert await ask("ListTagsForResource") == {"tags": {"env": "dev"}}
        with pytest.raises(ServiceQuotaExceededException, match="50"):
            await ask("TagResource", tags={f"k{n}": "" for n in range(50)})
        with pytest.raises(ValidationException, match="aws:"):
            await ask("TagResource", tags={"AWS:x": ""})
        for wrong in (f"{ARN}{kind}/two", arn.replace("default", "other"), arn.replace("us-west-2", "us-east-1")):
            with pytest.raises(ResourceNotFoundException):
                await ask("ListTagsForResource", arn=wrong)
    with pytest.raises(ValidationException, match="aws:"):
        await plane.create_api_key_credential_provider(operator, {"name": "x", "apiKey": "k", "tags": {"aws:a": "b"}})


class Other:
    """Another plane with tags."""

    name = "other"
    arn_kinds = frozenset({"runtime"})

    async def tag_resource(self, call: Call, request: Any) -> Any:
        raise AssertionError

    untag_resource = list_tags_for_resource = tag_resource


async def test_the_vault(plane: IdentityPlane, operator: Call, clock: Any) -> None:
    first = await plane.get_token_vault(operator, {})
    assert (first["tokenVaultId"], first["kmsConfiguration"]) == ("default", {"keyType": "ServiceManagedKey"})
    clock.move(60)
    assert await plane.get_token_vault(operator, {"tokenVaultId": "default"}) == first
    with pytest.raises(ResourceNotFoundException, match="no token vault mine"):
        await plane.get_token_vault(operator, {"tokenVaultId": "mine"})


async def test_secrets_open_with_their_key_and_for_their_provider_only(
    make_plane: Callable[..., IdentityPlane], store: ValkeyKeyValueStore, master_key: FileMasterKey, operator: Call
) -> None:
    """IDN-3: a copy of the store, or a hand in it, yields no secret: neither with another key, nor by moving one
    provider's secret to another's name."""
    plane = make_plane()
    token = await token_of(plane, operator)
    for name in ("cheap", "dear"):
        await plane.create_api_key_credential_provider(operator, {"name": name, "apiKey": f"key of {name}"})
    await plane.create_oauth2_credential_provider(operator, oauth2("dear"))
    secrets = partition("identity", "token-vaults", "default", "apikey")
    cheap, dear = await store.get_many(secrets, ["cheap", "dear"])
    client = await store.get(partition("identity", "token-vaults", "default", "oauth2"), "dear")
    assert cheap is not None and dear is not None and client is not None
    for planted in (dear, client, dear[:-9] + b'AAAAAAA"}', b"{}", b"[]", b"", b'{"key":1,"secret":2}'):
        await store.transact([Put(secrets, "cheap", planted)])
        with pytest.raises(InternalServerException, match="update the provider with its secret"):
            await key_of(plane, operator, token, "cheap")
    await store.transact([Put(secrets, "cheap", cheap)])
    assert await key_of(plane, operator, token, "cheap") == "key of cheap"

    other = make_plane(master_key=FileMasterKey(b"o" * 32))
    with pytest.raises(InternalServerException, match="cannot be opened with this platform's master key"):
        await other._api_keys.secret("cheap")
    assert (await other.get_api_key_credential_provider(operator, {"name": "cheap"}))["name"] == "cheap"
    await other.update_api_key_credential_provider(operator, {"name": "cheap", "apiKey": "new"})
    assert await other._api_keys.secret("cheap") == "new"


# Who is given a key.


async def test_a_session_gets_keys_for_its_own_agent_and_user(
    plane: IdentityPlane, operator: Call, session_of: Callable[..., Call], caplog: pytest.LogCaptureFixture
) -> None:
    """IDN-2, IDN-4: with its own workload access token only, and only while it acts for a user. Each is audited."""
    await plane.create_api_key_credential_provider(operator, {"name": "weather", "apiKey": "k-canary"})
    tokens = plane.workload_tokens
    for runtime in ("helper-1234567890", "other-1234567890"):
        await tokens.create_for_service(runtime)
    alice, bob = User("alice"), User("bob")
    own = await tokens.issue("helper-1234567890", alice)
    bobs = await tokens.issue("helper-1234567890", bob)
    issued = await tokens.issue("helper-1234567890", User("alice", "https://idp.example"))
    others = await tokens.issue("other-1234567890", alice)
    alone = (await plane.get_workload_access_token(operator, {"workloadName": await _workload(plane, operator)}))[
        "workloadAccessToken"
    ]
    assert own and bobs and issued and others
    with caplog.at_level(logging.INFO, logger="agentkeep"):
        assert await key_of(plane, session_of(), own) == "k-canary"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        f"audit api-key-used: {session_of().caller.principal} got the API key of credential provider weather for user "
        "alice."
    )
    for stolen in (bobs, issued, others, alone):
        with pytest.raises(AccessDeniedException, match="belongs to another agent or user"):
            await key_of(plane, session_of(), stolen)
        assert await key_of(plane, operator, stolen) == "k-canary"
    for token in (own, alone):
        with pytest.raises(AccessDeniedException, match="this session has no user; invoke with a user JWT or runtimeU"):
            await key_of(plane, session_of(user=None), token)
    with pytest.raises(AccessDeniedException, match="belongs to another"):
        await key_of(plane, session_of("other-1234567890"), own)


async def _workload(plane: IdentityPlane, operator: Call) -> str:
    return (await plane.create_workload_identity(operator, {"name": "agent"}))["name"]


async def test_bad_tokens(plane: IdentityPlane, operator: Call, clock: Any) -> None:
    await plane.create_api_key_credential_provider(operator, {"name": "weather", "apiKey": "k"})
    token = await token_of(plane, operator)
    for bad in ("x", token[:-2] + ("AA" if token[-2:] != "AA" else "BB"), token + "=", "é" * 50):
        with pytest.raises(UnauthorizedException, match="not one that this platform issued"):
            await key_of(plane, operator, bad)
    with pytest.raises(ResourceNotFoundException, match="no API key credential provider named absent"):
        await key_of(plane, operator, token, "absent")
    clock.move(3601)
    with pytest.raises(UnauthorizedException, match="expired"):
        await key_of(plane, operator, token)
    token = await token_of(plane, operator)
    await plane.delete_workload_identity(operator, {"name": "agent"})
    with pytest.raises(UnauthorizedException, match="has been deleted"):
        await key_of(plane, operator, token)


async def test_providers_are_for_operators(plane: IdentityPlane, session_of: Callable[..., Call]) -> None:
    """Agents and users neither see nor change providers; users are given no keys."""
    backend = SelfBackend([plane])
    session = session_of().caller
    user = Caller(CallerKind.USER, "user", None, User("alice"), SessionRef("helper-1234567890", "s" * 33))
    closed = [
        verb + kind
        for kind in ("ApiKeyCredentialProvider", "Oauth2CredentialProvider")
        for verb in ("Create", "Get", "Update", "Delete")
    ]
    closed += ["ListApiKeyCredentialProviders", "ListOauth2CredentialProviders", "GetTokenVault"]
    for caller, operations in ((session, closed), (user, [*closed, "GetResourceApiKey"])):
        for operation in operations:
            with pytest.raises(AccessDeniedException, match="not authorized to perform"):
                await backend.invoke(Call("bedrock-agentcore-control", operation, caller, "r"), {"name": "weather"})
