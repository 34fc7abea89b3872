from __future__ import annotations

from collections.abc import Iterator

import pytest
from platform_process import PlatformProcess, running_platform


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlatformProcess]:
    with running_platform(tmp_path_factory.mktemp("platform")) as platform:
        yield platform
