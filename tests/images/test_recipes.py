"""The recipes of the images that tests build: there for each image that the deployment names, and exact."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from images.build import RECIPES, Recipe, public_images

FILES = [path for path in RECIPES.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc", ".md"}]


def test_each_image_of_the_deployment_has_a_recipe() -> None:
    images = public_images()
    assert {"nginx", "valkey", "opensearch", "keycloak", "opentelemetry-collector", "python"} == {
        image.rsplit("/", 1)[-1].partition(":")[0] for image in images
    }
    for image in images:
        assert ":" in image, f"{image} has no tag"
        bases = Recipe.of(image).bases
        while bases:
            bases = tuple(base for each in bases for base in Recipe.of(each).bases)


def test_an_image_without_a_recipe_says_what_to_do() -> None:
    with pytest.raises(LookupError, match=r"write tests/images/postgres/Dockerfile"):
        Recipe.of("library/postgres:18")


def test_a_changed_recipe_makes_another_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so does a changed base."""
    names = {"python:3.11-slim", "agentkeep-test/java:21", "opensearchproject/opensearch:3.5.0"}
    former = {name: Recipe.of(name).archive for name in names}
    for name in ("debian", "java", "maven", "opensearch", "python"):
        (tmp_path / name).mkdir()
        for file in (RECIPES / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("images.build.RECIPES", tmp_path)
    assert {name: Recipe.of(name).archive for name in names} == former
    with (tmp_path / "java" / "Dockerfile").open("a") as recipe:
        recipe.write("# changed\n")
    assert {name for name in names if Recipe.of(name).archive != former[name]} == names - {"python:3.11-slim"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(RECIPES)))
def test_what_is_fetched_is_pinned(path: Path) -> None:
    """Wheels by hash, artifacts by digest, Go modules by version; and no registry is named: the machine's are used."""
    text = path.read_text()
    assert not re.search(r"https?://(?!127\.0\.0\.1)", text)
    if path.name == "requirements.txt":
        assert all("==" in line and "--hash=sha256:" in line for line in text.splitlines())
    for fetched in re.findall(r"^\s*(?:RUN|&&) fetch .*(?:\n.*)?", text, re.M):
        assert re.search(r"\b[0-9a-f]{64}\b", fetched)
    for module in re.findall(r"go install (\S+)|gomod: \S+ (\S+)", text):
        assert re.fullmatch(r".*@v\$TAG|v\d+\.\d+\.\d+", "".join(module))
    if "pip install" in text:
        assert text.count("pip install") == text.count("--require-hashes")
