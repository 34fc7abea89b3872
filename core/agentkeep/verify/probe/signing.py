"""Requests to the session endpoint, signed with Signature Version 4 by the standard library.

Source: AWS's description of SigV4; the path is encoded once more than it is sent, as every service but S3 has it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote, urlsplit

SERVICE = "bedrock-agentcore"
SECONDS = 30


class Refused(OSError):
    """An answer that is not a success; what it says is the text."""


def base_url() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_BEDROCK_AGENTCORE", "http://169.254.170.2").rstrip("/")


def own_keys(headers: Mapping[str, str] | None = None) -> list[str]:
    """Access key id, secret key, session token: by the container-credentials provider's address, as SDKs ask it."""
    path = os.environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/credentials")
    url = os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://169.254.170.2{path}")
    found = json.loads(http("GET", url, headers=headers))
    return [found["AccessKeyId"], found["SecretAccessKey"], found["Token"]]


def http(method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    request = urllib.request.Request(url, body, dict(headers or {}), method=method)  # noqa: S310 -- the platform's
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=SECONDS) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            raise Refused(f"{error.code} {error.read(300).decode(errors='replace')}") from None


def signed(
    method: str, path: str, document: Any = None, *, keys: list[str] | None = None, headers: Mapping[str, str] = {}
) -> bytes:
    """`path` as it is sent: encoded. Raises Refused, or OSError where there is no answer."""
    keys = keys or own_keys()
    url = base_url() + path
    body = b"" if document is None else json.dumps(document).encode()
    at = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")  # noqa: UP017 -- Python 3.10, too
    region = os.environ.get("AWS_REGION", "us-east-1")
    scope = f"{at[:8]}/{region}/{SERVICE}/aws4_request"
    sent = {
        **headers, "Host": urlsplit(url).netloc, "Content-Type": "application/json", "X-Amz-Date": at,
        "X-Amz-Security-Token": keys[2],
    }  # fmt: skip
    lower = {name.lower(): value.strip() for name, value in sent.items()}
    names = ";".join(sorted(lower))
    canonical = "\n".join(
        [method, quote(path, safe="/-_.~"), "", *(f"{name}:{lower[name]}" for name in sorted(lower)), "", names,
         hashlib.sha256(body).hexdigest()]
    )  # fmt: skip
    text = f"AWS4-HMAC-SHA256\n{at}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{keys[1]}".encode()
    for part in (at[:8], region, SERVICE, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    sent["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys[0]}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return http(method, url, body, sent)
