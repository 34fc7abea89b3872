"""Arguments of tools against the tools' schemas, and what is said of those that do not fit.

Schemas come from whoever makes targets, arguments from agents: neither may fetch anything or take long. So references
are never retrieved, and patterns are matched in linear time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import jsonschema_rs
import orjson

__all__ = ["ArgumentSchemas", "BadSchema"]

_MOST_FAULTS: Final = 10
_LONGEST_FAULT: Final = 300


class BadSchema(Exception):
    """The schema cannot be used; says why."""


def _type(value: object) -> str:
    if value is None:
        return "null"
    for kinds, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array")):
        if isinstance(value, kinds):
            return name
    return "object"


class ArgumentSchemas:
    """Validators, prepared once for each schema. `most`: how many are kept."""

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._prepared: OrderedDict[bytes, jsonschema_rs.Validator] = OrderedDict()

    def prepare(self, schema: Mapping[str, Any]) -> jsonschema_rs.Validator:
        """Raises BadSchema."""
        digest = hashlib.sha256(orjson.dumps(schema, option=orjson.OPT_SORT_KEYS)).digest()
        validator = self._prepared.get(digest)
        if validator is None:
            try:
                validator = jsonschema_rs.validator_for(
                    dict(schema), offline=True, pattern_options=jsonschema_rs.RegexOptions()
                )
            except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError, TypeError) as error:
                raise BadSchema(str(error).partition("\n")[0][:_LONGEST_FAULT]) from None
            self._prepared[digest] = validator
            if len(self._prepared) > self._most:
                self._prepared.popitem(last=False)
        else:
            self._prepared.move_to_end(digest)
        return validator

    def faults(self, schema: Mapping[str, Any], arguments: Any) -> list[str]:
        """What is wrong with the arguments, in AgentCore's words; empty where nothing is. Raises BadSchema."""
        validator = self.prepare(schema)
        if validator.is_valid(arguments):
            return []
        missing: list[str] = []
        faults: list[str] = []
        for error in validator.iter_errors(arguments):
            path = "".join(f"/{part}" for part in error.instance_path)
            if error.kind.name == "required":
                missing.append(f"{path}/{error.kind.as_dict()['property']}".lstrip("/"))
            elif len(faults) < _MOST_FAULTS:
                faults.append(_fault(error, path)[:_LONGEST_FAULT])
        if missing:
            names = ", ".join(f"'{name}'" for name in missing[:_MOST_FAULTS])
            faults.insert(0, f"Missing required field(s): {names}")
        return faults


def _fault(error: jsonschema_rs.ValidationError, path: str) -> str:
    kind = error.kind
    if kind.name == "type":
        expected = ", ".join(kind.as_dict()["types"])
        return f"Field '{path or '/'}' has invalid type: {_type(error.instance)} found, {expected} expected"
    if kind.name == "additionalProperties":
        names = ", ".join(f"'{name}'" for name in kind.as_dict()["unexpected"][:_MOST_FAULTS])
        return f"Unknown field(s){f' in {path!r}' if path else ''}: {names}"
    return f"Field '{path or '/'}': {error.message}"
