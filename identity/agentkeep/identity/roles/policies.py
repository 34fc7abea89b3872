"""Reading of what roles may do: policies in IAM's shape, each word of which is honoured, or the policy is refused.

Refused when it is read, never ignored: members and condition operators that are not evaluated here, actions that
nothing is, resources of no form there is, condition keys that the actions' requests do not have, policy variables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final, NoReturn

from agentkeep.backend.actions import FURTHER_ACTIONS, RESOURCES, action, condition_keys, forms
from agentkeep.core.errors import ValidationException
from agentkeep.core.grants import ACT_FOR_USER, user_arn
from agentkeep.core.identifiers import Deployment
from agentkeep.core.policies import OPERATORS, Condition, Policy, Statement, pattern, statements, texts
from agentkeep.service.mounts import OPERATORS_MOUNTS, mount_actions
from agentkeep.wire.model import SERVICES, service

__all__ = ["actions", "parse_permissions"]

_MEMBERS: Final = frozenset({"Sid", "Effect", "Action", "Resource", "Condition"})
_IF_EXISTS: Final = "IfExists"
_ANY: Final = "*"
#: In a form of a resource: one or more characters of a name.
_NAME: Final = "\0"


@cache
def actions() -> Mapping[str, tuple[str, ...]]:
    """Every action there is, with the forms of the resources it is on."""
    found: dict[str, set[str]] = {}
    for name in SERVICES:
        for operation in service(name).operation_names:
            found.setdefault(action(name, operation), set()).update(forms(name, operation))
    found |= {further: set(kinds) for further, kinds in FURTHER_ACTIONS.items()}
    for mount in OPERATORS_MOUNTS:
        found |= {one: {_ANY} for one in mount_actions(mount)}
    found[ACT_FOR_USER] = {user_arn("*", "{}")}
    return {name: tuple(sorted(kinds)) for name, kinds in found.items()}


def parse_permissions(document: Any, deployment: Deployment) -> Policy:
    """Raises ValidationException saying which statement is wrong, and in what."""
    return Policy(
        tuple(_Reading(given, index, deployment).statement() for index, given in enumerate(statements(document), 1))
    )


class _Reading:
    """Of one statement."""

    def __init__(self, given: Any, index: int, deployment: Deployment) -> None:
        self._given = given
        self._called = f"Statement {index} of the policy"
        self._deployment = deployment

    def statement(self) -> Statement:
        given = self._given
        if not isinstance(given, dict):
            self._fault("is not an object")
        if unknown := given.keys() - _MEMBERS:
            self._fault(
                f"{', '.join(sorted(map(str, unknown)))} is not evaluated here, so the policy is refused rather than "
                f"enforced in part. There are {', '.join(sorted(_MEMBERS))}"
            )
        if given.get("Effect") not in ("Allow", "Deny"):
            self._fault('"Effect" must be "Allow" or "Deny"')
        asked, on = texts(given.get("Action")), texts(given.get("Resource"))
        if not asked or not on:
            self._fault('"Action" and "Resource" must each be a text or a list of texts')
        self._without_variables([*asked, *on])
        meant = {one: self._actions(one) for one in asked}
        for name in on:
            self._check_resource(name)
        for one, names in meant.items():
            if not any(self._meets(name, kind) for name in on for known in names for kind in actions()[known]):
                known = sorted({self._arn(kind) for name in names for kind in actions()[name]})
                self._fault(
                    f'{one} is never on a resource that "Resource" names, so the statement would mean nothing for it. '
                    f"It is on {' or '.join(known).replace('{}', 'NAME')}"
                )
        allows = given["Effect"] == "Allow"
        conditions = tuple(self._conditions(given.get("Condition", {}), meant, allows))
        return Statement(allows, tuple(one.lower() for one in asked), tuple(on), conditions=conditions)

    def _actions(self, named: str) -> list[str]:
        found = [known for known in actions() if pattern(named.lower()).fullmatch(known.lower())]
        if not found:
            self._fault(
                f"there is no action {named!r}. They are called bedrock-agentcore:<Operation>, as the service model "
                "has it, bedrock:InvokeModel and the like, iam:PassRole, and agentkeep:... (docs/development/roles.md)"
            )
        return found

    def _check_resource(self, named: str) -> None:
        kinds = {kind for known in actions().values() for kind in known}
        if not any(self._meets(named, kind) for kind in kinds):
            known = ", ".join(form.replace("{}", "NAME") for form in RESOURCES)
            self._fault(f"no resource here is called {named!r}. There are {self._deployment.arn('...')} with {known}")

    def _conditions(self, given: Any, meant: Mapping[str, list[str]], allows: bool) -> Iterable[Condition]:
        if not isinstance(given, dict):
            self._fault('"Condition" must be an object')
        for written, compared in given.items():
            operator = written.removesuffix(_IF_EXISTS)
            if operator not in OPERATORS:
                self._fault(f"the condition operator {written!r} is not evaluated here. There are "
                            f"{', '.join(OPERATORS)}, each also with {_IF_EXISTS} behind it")  # fmt: skip
            if not isinstance(compared, dict) or not compared:
                self._fault(f"{written} must name a condition key and what it is compared with")
            for key, value in compared.items():
                values = texts(value)
                if not values:
                    self._fault(f"{written}, {key}: must be a text or a list of texts")
                self._without_variables(values)
                self._check_key(key, meant, allows)
                condition = Condition(operator, key.lower(), tuple(values), written.endswith(_IF_EXISTS))
                if "namespace" in condition.key:
                    self._check_paths(key, condition, allows)
                yield condition

    def _check_key(self, key: str, meant: Mapping[str, list[str]], allows: bool) -> None:
        for one, names in meant.items():
            having = [known for known in names if key.lower() in condition_keys(known.partition(":")[2])]
            if not having:
                self._fault(f"requests of {one} have no condition key {key!r}: the condition would not be about them")
            if not allows and len(having) < len(names):
                without = next(known for known in names if known not in having)
                self._fault(
                    f"{one} is {without} too, whose requests have no condition key {key!r}: what is denied would "
                    "depend on what is not there. Name the actions that have it"
                )

    def _check_paths(self, key: str, condition: Condition, allows: bool) -> None:
        """What keeps somebody from a path must keep him from all above it, and from asking without one."""
        _, _, negated = OPERATORS[condition.operator]
        if negated is allows or (allows and condition.if_exists):
            self._fault(
                f"{key} can say what is open, not what is closed: a request may leave it out, or name a path above and "
                "see what is beneath. Use StringEquals or StringLike in an Allow, and StringNotEquals or StringNotLike "
                "in a Deny"
            )
        for value in condition.values:
            if value[0] not in "/*" or value[-1] not in "/*":
                self._fault(f"{key} is compared with paths like /users/alice/, which begin and end with a slash; "
                            f"{value!r} does not")  # fmt: skip

    def _without_variables(self, values: Iterable[str]) -> None:
        for value in values:
            if "${" in value:
                self._fault(f"{value!r}: policy variables are not evaluated here")

    def _meets(self, named: str, kind: str) -> bool:
        return named == _ANY or (
            kind != _ANY and _meets(named, self._arn(kind).replace("{}", _NAME).replace("*", _NAME))
        )

    def _arn(self, kind: str) -> str:
        """A form of a resource in this deployment."""
        if kind == _ANY:
            return kind
        if not kind.startswith("arn:"):
            return self._deployment.arn(kind)
        if kind.startswith("arn:aws:agentkeep:"):
            return user_arn(self._deployment.account, "{}")
        if kind.endswith(":*") or kind.startswith("arn:aws:iam:"):
            return kind  # of any account
        return kind.replace("bedrock:*", f"bedrock:{self._deployment.region}").replace(
            ":*:", f":{self._deployment.account}:"
        )

    def _fault(self, text: str) -> NoReturn:
        raise ValidationException(f"{self._called}: {text}.")


def _meets(named: str, form: str) -> bool:
    """Whether the pattern `named` matches any text of `form`, in which `_NAME` is any text but the empty one."""
    seen, waiting = {(0, 0)}, [(0, 0)]
    while waiting:
        i, j = waiting.pop()
        if i == len(named) and j == len(form):
            return True
        steps = []
        star = i < len(named) and named[i] == _ANY
        if star:
            steps.append((i + 1, j))
        if j < len(form):
            if star:
                steps.append((i, j + 1))
            elif i < len(named) and (form[j] == _NAME or named[i] in ("?", form[j])):
                steps.append((i + 1, j + 1))
            if form[j] == _NAME and i < len(named):
                steps.append((i + 1, j))
        new = [step for step in steps if step not in seen]
        seen.update(new)
        waiting += new
    return False
