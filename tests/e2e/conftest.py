"""The compose deployment, up once for all tests of it, and what they share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from compose_application import Application
from compose_roles import ComposeRoles
from compose_stack import ComposeStack, compose_stack

#: Tests of the deployment, as its life goes: it is used and attacked, gets roles, is stopped and started, grows.
_LIFE = (
    "test_compose.py",
    "test_compose_roles.py",
    "test_compose_restart.py",
    "test_compose_replicas.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Together and last, in random order within each module: no other test can have the session network while the
    deployment is up, and each change of the number of replicas takes time."""
    items.sort(key=lambda item: _LIFE.index(item.path.name) if item.path.name in _LIFE else -1)


@pytest.fixture(scope="session")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    with compose_stack(tmp_path_factory.mktemp("identity")) as stack:
        yield stack


@pytest.fixture(scope="session")
def application(compose: ComposeStack) -> Application:
    return Application(compose)


@pytest.fixture(scope="session")
def roles(compose: ComposeStack) -> ComposeRoles:
    """From now on there are some."""
    roles = ComposeRoles(compose.url, compose)
    roles.drop_in()
    return roles
