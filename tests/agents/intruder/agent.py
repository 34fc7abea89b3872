"""A malicious agent: an ordinary application, made with the public SDK, that tries the attacks of `intrusions.py`."""

import json
from typing import Any

import intrusions
from bedrock_agentcore import BedrockAgentCoreApp

app = BedrockAgentCoreApp()
kept: dict[str, Any] = {}


@app.entrypoint
def invoke(payload: dict[str, Any]) -> Any:
    target = json.loads(payload.get("target", "}{")[::-1])
    match payload["do"]:
        case "keep":
            kept.update(payload["what"])
            return sorted(kept)
        case "show":
            return kept
        case "intrude":
            return {name: attempt(attack, target) for name, attack in intrusions.ATTACKS.items()}
        case name:
            return getattr(intrusions, name)(target)


def attempt(attack: intrusions.Attack, target: dict[str, Any]) -> list[str]:
    try:
        return ["answered", repr(attack(target))[:2000]]
    except Exception as error:
        return ["refused", f"{type(error).__name__}: {error}"[:500]]


app.run()
