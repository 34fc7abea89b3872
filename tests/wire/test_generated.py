"""What is generated from the models and the planes: types and the compatibility page."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agentkeep.core.call import Call
from agentkeep.wire.model import SERVICES, service
from agentkeep.wire.parity import implemented
from agentkeep.wire.types import bedrock_agentcore, bedrock_agentcore_control, bedrock_runtime

ROOT = Path(__file__).parents[2]


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_request_and_answer_has_its_type() -> None:
    modules = dict(zip(SERVICES, (bedrock_agentcore, bedrock_agentcore_control, bedrock_runtime), strict=True))
    for name, module in modules.items():
        for operation in service(name).operation_names:
            model = service(name).operation(operation)
            for shape in (model.input, model.output):
                assert shape is not None
                assert list(getattr(module, shape.name).__annotations__) == list(shape.members)


def test_types_are_written_the_same_each_time_and_staleness_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generate = tool("generate_types")
    monkeypatch.setattr(generate, "TYPES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["generate_types.py"])
    assert generate.main() == 0
    monkeypatch.setattr(sys, "argv", ["generate_types.py", "--check"])
    assert generate.main() == 0
    committed = ROOT / "core" / "agentkeep" / "wire" / "types"
    for written in tmp_path.iterdir():
        assert written.read_text() == (committed / written.name).read_text()
        assert "/site-packages" not in written.read_text()
    (tmp_path / "bedrock_runtime.py").write_text("")
    assert generate.main() == 1
    assert "bedrock_runtime.py is stale" in capsys.readouterr().err


def test_the_page_names_every_operation_once() -> None:
    page = tool("generate_compatibility").page()
    for name in SERVICES:
        for operation in service(name).operation_names:
            assert page.count(f"\n| {operation} | ") == 1


class Plane:
    """What counts as an operation: a public async method of boto3's name."""

    async def create_event(self, call: Call, request: Any) -> Any: ...

    async def get_ab_test(self, call: Call, request: Any) -> Any: ...

    async def no_operation(self) -> None: ...

    def delete_event(self) -> None: ...


def test_what_is_implemented_is_derived_from_the_classes() -> None:
    Plane.__module__ = "agentkeep.memory.operations"
    assert implemented([Plane]) == {
        ("bedrock-agentcore", "CreateEvent"): ("memory",),
        ("bedrock-agentcore", "GetABTest"): ("memory",),
    }
