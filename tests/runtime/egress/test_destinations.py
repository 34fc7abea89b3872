"""Hosts and ports, written in one way only; which addresses they may be at."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agentkeep.cli.main import app
from agentkeep.cli.output import CommandError
from agentkeep.core.addresses import Standing, standing
from agentkeep.runtime.egress.destinations import BadDestination, parse_destination, parse_pattern
from agentkeep.runtime.egress.rules import EgressRules, EgressRulesInvalid

AGENT = "reports-0123456789"


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (b"api.example.com:443", "api.example.com"),
        (b"API.Example.COM:443", "api.example.com"),
        (b"api.example.com.:443", "api.example.com"),
        (b"xn--bcher-kva.example:443", "xn--bcher-kva.example"),
        (b"_under.example:443", "_under.example"),
        (b"203.0.113.7:443", "203.0.113.7"),
        (b"[2001:DB8:0:0::7]:443", "2001:db8::7"),
        (b"[::ffff:203.0.113.7]:443", "::ffff:203.0.113.7"),
    ],
)
def test_one_form_of_each(authority: bytes, host: str) -> None:
    assert parse_destination(authority).host in (host, str(ip_address(host)) if ":" in host else host)


@pytest.mark.parametrize(
    "authority",
    [
        b"", b":443", b"api.example.com", b"api.example.com:", b"api.example.com:0", b"api.example.com:65536",
        b"api.example.com:+443", b"api.example.com:0443", b"api.example.com: 443", b"api.example.com:443:443",
        b"api.example.com:4\xd9\xa34", b"api.example.com:https", b"user@api.example.com:443",
        b"user:secret@api.example.com:443", b"http://api.example.com:443", b"api.example.com/:443",
        b"api..example.com:443", b".example.com:443", b"example.com..:443", b"-a.example:443", b"a-.example:443",
        b"a" * 64 + b".example:443", b"a." * 130 + b"example:443", b"api.example.com\0:443", b"api%2eexample.com:443",
        b"api.example.com\t:443", b"b\xc3\xbccher.example:443", b"api\xe3\x80\x82example.com:443", b"*.example.com:443",
        b"127.1:443", b"2130706433:443", b"0x7f000001:443", b"0x7f.0.0.1:443", b"0177.0.0.1:443", b"1.2.3.4.5:443",
        b"256.1.1.1:443", b"a.0x7f:443", b"127.0.0.1.:443", b"::1:443", b"[::1:443", b"[::1]443", b"[fe80::1%25lo]:443",
        b"[fe80::1%lo]:443", b"[203.0.113.7]:443", b"[api.example.com]:443", b"[]:443", b"[v1.a]:443",
    ],
)  # fmt: skip
def test_nothing_else_is_a_destination(authority: bytes) -> None:
    """IDN-2: no host that a resolver, a rule and TLS could read in different ways."""
    with pytest.raises(BadDestination):
        parse_destination(authority)


@pytest.mark.parametrize(
    ("pattern", "covered", "not_covered"),
    [
        ("api.example.com", [b"api.example.com:443", b"API.example.com.:443"],
         [b"api.example.com:80", b"x.api.example.com:443", b"api.example.com.evil.example:443"]),
        ("*.s3.region.example", [b"bucket.s3.region.example:443", b"a.b.s3.region.example:443"],
         [b"s3.region.example:443", b"evils3.region.example:443", b"b.s3.region.example:444"]),
        ("Api.Example.com:8443", [b"api.example.com:8443"], [b"api.example.com:443"]),
        ("203.0.113.7", [b"203.0.113.7:443"], [b"[::ffff:203.0.113.7]:443", b"203.0.113.8:443"]),
        ("[2001:db8::7]:444", [b"[2001:DB8:0::7]:444"], [b"[2001:db8::7]:443", b"[2001:db8::8]:444"]),
    ],
)  # fmt: skip
def test_what_a_pattern_covers(pattern: str, covered: list[bytes], not_covered: list[bytes]) -> None:
    parsed = parse_pattern(pattern)
    assert all(parsed.covers(parse_destination(one)) for one in covered)
    assert not any(parsed.covers(parse_destination(one)) for one in not_covered)
    assert parse_pattern(str(parsed)) == parsed


def rules(**changes: Any) -> bytes:
    rule = {"name": "AWS", "agents": ["reports"], "hosts": ["api.example.com"], **changes}
    return json.dumps({"rules": [rule], "default": "refuse"}).encode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[]", "the file"),
        (b"{", "JSON"),
        (b'{"rules": [], "default": "refuse"}', "rules"),
        (rules().replace(b"refuse", b"allow"), "default"),
        (rules(hosts=[]), "rules.0.hosts"),
        (rules(hosts="api.example.com"), "rules.0.hosts"),
        (rules(hosts=["*"]), "rules.0.hosts.0"),
        (rules(hosts=["*.com"]), "top-level domain"),
        (rules(hosts=["api.*.example.com"]), "rules.0.hosts.0"),
        (rules(hosts=["https://api.example.com"]), "rules.0.hosts.0"),
        (rules(hosts=["bücher.example"]), "xn--"),
        (rules(hosts=[7]), "a host is text"),
        (rules(hosts=["a.example", "0x7f.1"]), "rules.0.hosts.1"),
        (rules(networks=["10.1.0.1/16"]), "rules.0.networks.0"),
        (rules(networks=["169.254.169.254/32"]), "never opened"),
        (rules(networks=["fe80::/64"]), "never opened"),
        (rules(agents=[]), "rules.0.agents"),
        (rules(agents=["re ports"]), "rules.0.agents"),
        (rules(ports=[443]), "rules.0.ports"),
        (json.dumps({"rules": json.loads(rules())["rules"] * 2, "default": "refuse"}).encode(), "several rules"),
    ],
)
def test_wrong_rules_are_refused_with_their_place(text: bytes, said: str) -> None:
    with pytest.raises(EgressRulesInvalid, match=said.replace("*", r"\*")):
        EgressRules.parse(text, "rules.json")


def test_the_first_rule_that_names_agent_and_host() -> None:
    found = EgressRules.parse(
        json.dumps(
            {
                "rules": [
                    {"name": "one", "agents": ["other"], "hosts": ["api.example.com"]},
                    {"name": "two", "agents": ["reports"], "hosts": ["*.example.com"]},
                    {"name": "three", "agents": ["*"], "hosts": ["api.example.com", "all.example"]},
                ],
                "default": "refuse",
            }
        ).encode(),
        "rules.json",
    )

    def chosen(agent: str, host: bytes) -> str | None:
        rule = found.choose(agent, parse_destination(host))
        return rule.name if rule is not None else None

    assert chosen(AGENT, b"api.example.com:443") == "two"
    assert chosen("other-0123456789", b"api.example.com:443") == "one"
    assert chosen("reports2-0123456789", b"api.example.com:443") == "three"
    assert chosen(AGENT, b"example.com:443") is None
    assert found.name("nobody-0123456789")
    assert not EgressRules.parse(rules(), "").name("nobody-0123456789")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.215.14", Standing.PUBLIC),
        ("2606:2800:21f::1", Standing.PUBLIC),
        ("10.1.2.3", Standing.OPENED),
        ("::ffff:10.1.2.3", Standing.OPENED),
        ("64:ff9b::10.1.2.3", Standing.OPENED),
        *[
            (address, Standing.PRIVATE)
            for address in (
                "10.2.0.1", "127.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "192.0.0.1", "240.0.0.1", "::1",
                "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b:1::7f00:1", "2002:7f00:1::",
                "fc00::1", "fec0::1", "::ffff:0:127.0.0.1", "255.255.255.255",
            )
        ],
        *[
            (address, Standing.NEVER)
            for address in (
                "169.254.169.254", "169.254.170.2", "0.0.0.0", "224.0.0.1", "::", "fe80::1", "ff02::1", "fd00:ec2::254",
                "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "::169.254.169.254",
            )
        ],
    ],
)  # fmt: skip
def test_where_an_address_leads(address: str, expected: Standing) -> None:
    """IDN-2: an address in another's form is that other's; metadata services are never opened."""
    assert standing(ip_address(address), [ip_network("10.1.0.0/16")]) is expected
    if expected is Standing.NEVER:
        assert standing(ip_address(address), [ip_network("0.0.0.0/0"), ip_network("::/0")]) is Standing.NEVER


def test_the_command_reads_rules_as_the_platform_does(tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    file.write_bytes(rules(networks=["10.1.0.0/16"]))
    done = CliRunner().invoke(app, ["egress", "check-rules", str(file)])
    assert "AWS: reports -> api.example.com:443 (also in 10.1.0.0/16)" in done.stdout, done.stderr
    file.write_bytes(rules(hosts=["*"]))
    refused = CliRunner().invoke(app, ["egress", "check-rules", str(file)])
    assert isinstance(refused.exception, CommandError) and "rules.0.hosts.0" in str(refused.exception)
