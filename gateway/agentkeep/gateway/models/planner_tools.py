"""How the demonstration's planner uses tools: which one a text asks for, by the words of its description; with which
arguments, by its schema; and what it says of the result."""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["ToolUse", "chosen_tool", "missing", "report", "told_tool"]

Tool = Mapping[str, Any]  # Converse's toolSpec
Schema = Mapping[str, Any]

_WORD: Final = re.compile(r"[^\W\d_]{2,}")
#: Words too common to tell one tool from another.
_COMMON: Final = frozenset(
    {"a", "an", "the", "of", "to", "for", "on", "in", "at", "by", "with", "from", "and", "or", "not", "as", "if"}
    | {"is", "it", "its", "am", "are", "was", "be", "been", "this", "that", "there", "have", "has", "had", "get"}
    | {"my", "me", "you", "your", "he", "his", "we", "our", "do", "does", "did", "can", "could", "would", "will"}
    | {"may", "please", "hello", "hi", "thanks", "thank"}
)
#: Of the patterns it looks for in texts: a character or class, and how often. No groups, and no second thoughts: what
#: an agent sends as a pattern cannot keep it searching.
_ATOM: Final = re.compile(r"(\[[^\[\]\\]*(?:\\[dws][^\[\]\\]*)*\]|\\[dws]|[\w -])(\{\d{1,2}(?:,\d{0,2})?\}|[+?*])?")
_LONGEST_TEXT: Final = 4000
_NUMBER: Final = re.compile(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w-])")
_REASON: Final = re.compile(r"\b(?:because|since|as|reason:)\s+(.+)", re.IGNORECASE | re.DOTALL)
_SENTENCE: Final = re.compile(r"[^.!?\n]+[.!?]*")
_FIRST_PERSON: Final = re.compile(r"\b(?:I|I'm|I've|[Mm]y|[Mm]e|[Ww]e|[Oo]ur)\b")
_WISH: Final = re.compile(r"\?|\b(?:please|want|need|would like|can you|could you)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ToolUse:
    id: str
    name: str
    input: Mapping[str, Any]

    @classmethod
    def of(cls, tool: Tool, told: Sequence[str]) -> ToolUse:
        schema = _schema(tool)
        filled = {
            name: value
            for name, member in (schema.get("properties") or {}).items()
            if (value := _value(member, schema, told, name in schema.get("required", ()))) is not None
        }
        return cls(f"tooluse_{secrets.token_urlsafe(16)}", tool["name"], filled)


def told_tool(config: Mapping[str, Any], told: Sequence[str]) -> ToolUse | None:
    """The tool that the request itself says must be used."""
    choice, tools = config.get("toolChoice") or {}, _tools(config)
    if "any" in choice and len(tools) == 1:
        return ToolUse.of(tools[0], told)
    if "tool" in choice:
        return next((ToolUse.of(tool, told) for tool in tools if tool["name"] == choice["tool"]["name"]), None)
    return None


def chosen_tool(config: Mapping[str, Any], text: str) -> Tool | None:
    """The tool whose name and description have most of the text's words. What several tools have, and what they call
    their arguments, tells none from the other; a tool is chosen by a word that does."""
    tools = _tools(config)
    words = set(_stems(text))
    spread = Counter(stem for tool in tools for stem in set(_described(tool)))
    best: tuple[int, int, Tool] | None = None
    for number, tool in enumerate(tools):
        telling = {stem for stem in _described(tool) if spread[stem] == 1} - set(_stems(*_schema(tool)["properties"]))
        if shared := words & telling:
            score = len(shared) + len(shared & set(_stems(tool["name"])))
            if best is None or score > best[0]:
                best = score, number, tool
    return best[2] if best else None


def missing(tool: Tool, told: Sequence[str]) -> str:
    """What the texts do not say of what the tool requires, in the schema's words; empty where they say it all."""
    schema = _schema(tool)
    filled = ToolUse.of(tool, told).input
    lacking = [name for name in schema.get("required", ()) if name not in filled]
    described = [str(schema["properties"][name].get("description") or _readable(name)) for name in lacking]
    return "; ".join(text.rstrip(".") for text in described)


def report(tool: str, result: Mapping[str, Any]) -> str:
    """A result in words: its members, or why there is none."""
    if result.get("status") == "error":
        return f"I could not do that ({_readable(tool)}): {' '.join(_result_texts(result))}"
    said = []
    for text in _result_texts(result):
        try:
            document = json.loads(text)
        except ValueError:
            document = text
        said.append(", ".join(_told(document)))
    return f"{_readable(tool).capitalize()}: {'; '.join(said) or 'done'}."


def _told(document: Any) -> Iterator[str]:
    match document:
        case dict():
            yield from (f"{_readable(name)} {' '.join(_told(value))}" for name, value in document.items())
        case list():
            for value in document:
                yield from _told(value)
        case str():
            yield document
        case _:
            yield json.dumps(document)


def _result_texts(result: Mapping[str, Any]) -> Iterator[str]:
    for block in result["content"]:
        if "text" in block:
            yield block["text"]
        elif "json" in block:
            yield json.dumps(block["json"])


# Arguments, by their schema.


def _value(member: Schema, schema: Schema, told: Sequence[str], required: bool) -> Any:
    """The latest text that says it counts. What a schema leaves open is only said where it must be."""
    if "enum" in member:
        return _first(
            value for text in reversed(told) for value in member["enum"] if str(value).lower() in text.lower()
        )
    match member.get("type"):
        case "string" if "pattern" in member:
            return _first(match for text in reversed(told) for match in _matches(member["pattern"], text))
        case "integer" | "number" as kind:
            patterns = [other["pattern"] for other in schema["properties"].values() if "pattern" in other]
            return _number(told[-1], patterns, whole=kind == "integer") if told else None
        case "string" if required and told:
            reason = _REASON.search(told[-1])
            return (reason[1] if reason else told[-1]).strip().rstrip(".!")[: member.get("maxLength", 500)]
        case "array" if (member.get("items") or {}).get("type") == "string":
            return list(dict.fromkeys(sentence for text in told for sentence in _statements(text)))
    return None


def _first(found: Iterator[Any]) -> Any:
    return next(found, None)


def _matches(pattern: str, text: str) -> Iterator[str]:
    simple = pattern.removeprefix("^").removesuffix("$")
    if not simple or _ATOM.sub("", simple):
        return
    possessive = _ATOM.sub(lambda atom: atom[0] + "+" if atom[2] else atom[0], simple)
    try:
        compiled = re.compile(rf"(?<![\w-])(?:{possessive})(?![\w-])")
    except re.error:
        return
    yield from (found.group() for found in compiled.finditer(text[:_LONGEST_TEXT]))


def _number(text: str, patterns: Sequence[str], *, whole: bool) -> int | float | None:
    """The first number that is not part of something else."""
    for pattern in patterns:
        for match in _matches(pattern, text):
            text = text.replace(match, " ")
    found = _NUMBER.search(text)
    if found is None:
        return None
    return int(float(found.group())) if whole else float(found.group())


def _statements(text: str) -> Iterator[str]:
    """Sentences in which somebody says something of himself; no wishes and questions."""
    for sentence in _SENTENCE.findall(text):
        if _FIRST_PERSON.search(sentence) and not _WISH.search(sentence):
            yield sentence.strip()


# Words.


def _tools(config: Mapping[str, Any]) -> list[Tool]:
    return [tool["toolSpec"] for tool in config.get("tools") or () if "toolSpec" in tool]


def _schema(tool: Tool) -> Schema:
    schema: Schema = tool["inputSchema"].get("json") or {}
    return {"properties": {}, **schema}


def _described(tool: Tool) -> Iterator[str]:
    return _stems(tool["name"], tool.get("description") or "")


def _stems(*texts: str) -> Iterator[str]:
    """Words by their first letters, so that `refunded` is `refund`."""
    for text in texts:
        for word in _WORD.findall(text.replace("_", " ").lower()):
            if word not in _COMMON:
                yield word[:5]


def _readable(name: str) -> str:
    """`orders___get_order_status`, as words, without the target's name."""
    return name.rpartition("___")[2].replace("_", " ")
