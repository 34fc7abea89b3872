"""Code bundles and their requirements: strangers' files, checked before they are unpacked, installed once."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import stat
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentkeep.runtime.agents.artifacts import ArtifactNotFound, ArtifactTooLarge, FolderArtifactStore
from agentkeep.runtime.agents.bundles import BundleRejected, Bundles
from agentkeep.runtime.agents.dependencies import Dependencies, DependenciesFailed, uv_environment

CODE = {
    "code": {"s3": {"bucket": "code", "prefix": "agent.zip"}},
    "runtime": f"PYTHON_{sys.version_info.major}_{sys.version_info.minor}",
    "entryPoint": ["main.py"],
}


def _wheel(folder: Path, name: str, requires: str = "") -> str:
    """A real wheel, made by hand; returns its hash."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": f"NAME = {name!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},\n"
        for path, text in files.items()
    )
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


@pytest.fixture
def artifacts(tmp_path: Path) -> FolderArtifactStore:
    return FolderArtifactStore(tmp_path / "artifacts")


@pytest.fixture
def dependencies(tmp_path: Path, wheels: Path) -> Dependencies:
    environment = uv_environment(
        default_index=None,
        extra_index=None,
        find_links=str(wheels),
        certificates=None,
        https_proxy=None,
        no_proxy=None,
    )
    return Dependencies(tmp_path / "dependencies", environment, 60, no_index=True)


@pytest.fixture
def bundles(tmp_path: Path, artifacts: FolderArtifactStore, dependencies: Dependencies) -> Bundles:
    return Bundles(
        tmp_path / "bundles",
        artifacts,
        dependencies,
        size_limit=1 << 20,
        unpacked_limit=1 << 20,
        python_substitution=True,
    )


async def _put(artifacts: FolderArtifactStore, content: bytes, key: str = "agent.zip") -> str:
    async def pieces() -> AsyncIterator[bytes]:
        yield content[:10]
        yield content[10:]

    return (await artifacts.put("code", key, pieces(), 1 << 30)).version_id


def _zip(files: dict[str, str | bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return file.getvalue()


# The store.


async def test_versions_of_an_object_never_change(artifacts: FolderArtifactStore) -> None:
    one, two = await _put(artifacts, b"0123456789-one"), await _put(artifacts, b"0123456789-two")
    assert (await artifacts.head("code", "agent.zip")).version_id == two
    for version, content in ((one, b"0123456789-one"), (two, b"0123456789-two")):
        found = await artifacts.head("code", "agent.zip", version)
        assert found.size == len(content)
        target = io.BytesIO()
        await artifacts.fetch(found, target)
        assert target.getvalue() == content


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "a/../../b", "k" * 1024, "ü/\x01"])
async def test_keys_are_names_not_paths(artifacts: FolderArtifactStore, tmp_path: Path, key: str) -> None:
    await _put(artifacts, b"content of the object", key)
    assert (await artifacts.head("code", key)).size == 21
    inside = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.is_relative_to(tmp_path / "artifacts") for path in inside)


async def test_what_is_not_there(artifacts: FolderArtifactStore) -> None:
    with pytest.raises(ArtifactNotFound, match=r"s3://code/agent\.zip"):
        await artifacts.head("code", "agent.zip")
    await _put(artifacts, b"0123456789")
    for version in ("0" * 64, "../newest", ".", ""):
        with pytest.raises(ArtifactNotFound):
            await artifacts.head("code", "agent.zip", version)


async def test_a_broken_upload_leaves_the_object_as_it_was(artifacts: FolderArtifactStore, tmp_path: Path) -> None:
    version = await _put(artifacts, b"0123456789")

    async def breaks() -> AsyncIterator[bytes]:
        yield b"new"
        raise ConnectionError

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 100

    with pytest.raises(ConnectionError):
        await artifacts.put("code", "agent.zip", breaks(), 100)
    with pytest.raises(ArtifactTooLarge):
        await artifacts.put("code", "agent.zip", endless(), 1000)
    assert (await artifacts.head("code", "agent.zip")).version_id == version
    assert not list(tmp_path.rglob("upload-*"))


# Unpacking.


async def test_a_bundle_is_unpacked_once_and_read_only(bundles: Bundles, artifacts: FolderArtifactStore) -> None:
    await _put(artifacts, _zip({"main.py": "print(1)\n", "package/data.txt": "data"}))
    first, second = await asyncio.gather(bundles.prepare(CODE, None), bundles.prepare(CODE, None))
    assert first.folder == second.folder
    assert (first.folder / "package" / "data.txt").read_text() == "data"
    assert first.dependencies is None
    assert first.note is None
    for path in first.folder.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o755 if path.is_dir() else 0o444)
    assert stat.S_IMODE(first.folder.stat().st_mode) == 0o755


async def test_a_version_keeps_its_code_when_the_object_changes(
    bundles: Bundles, artifacts: FolderArtifactStore
) -> None:
    """EXE-4."""
    await _put(artifacts, _zip({"main.py": "old"}))
    old = await bundles.prepare(CODE, None)
    await _put(artifacts, _zip({"main.py": "new"}))
    again = await bundles.prepare(CODE, old.artifact)
    assert (again.folder / "main.py").read_text() == "old"
    assert ((await bundles.prepare(CODE, None)).folder / "main.py").read_text() == "new"
    await bundles.collect([])
    restored = await bundles.prepare(CODE, old.artifact)  # from the artifact store
    assert (restored.folder / "main.py").read_text() == "old"


def _with(name: str, mode: int = stat.S_IFREG | 0o644, content: str = "x") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("main.py", "pass\n")
        entry = zipfile.ZipInfo(name)
        entry.external_attr = mode << 16
        archive.writestr(entry, content)
    return file.getvalue()


def _doctored(old: bytes, new: bytes) -> bytes:
    """A name that Python's zip writer would not write."""
    assert len(old) == len(new)
    return _with(old.decode()).replace(old, new)


ATTACKS = {
    "parent": _with("../outside.py"),
    "deep parent": _with("a/b/../../../../outside.py"),
    "absolute": _with("/tmp/outside.py"),
    "backslash": _doctored(b"..x..xoutside.py", b"..\\..\\outside.py"),
    "symbolic link": _with("link", stat.S_IFLNK | 0o777, "/etc/passwd"),
    "link in the way": _with("link/", stat.S_IFLNK | 0o777, ".."),
    "fifo": _with("pipe", stat.S_IFIFO | 0o644),
    "device": _with("device", stat.S_IFCHR | 0o666),
    "twice": _doctored(b"main2py", b"main.py"),
    "file as folder": _with("main.py/x.py"),
    "bomb": _zip({"main.py": b"0" * (2 << 20)}),
    "odd compression": _zip({"main.py": "x" * 1000}, zipfile.ZIP_LZMA),
    "no zip": b"this is not a zip file at all",
    "empty": b"",
    "truncated": _zip({"main.py": "x" * 1000})[:-30],
    "too large": _zip({"main.py": bytes(range(256)) * 5000}, zipfile.ZIP_STORED),
    "no entry point": _zip({"app.py": "pass\n"}),
    "entry point is a folder": _zip({"main.py/": ""}),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_hostile_bundles_are_rejected(
    bundles: Bundles, artifacts: FolderArtifactStore, tmp_path: Path, attack: str
) -> None:
    """Nothing of it is left, inside or outside."""
    await _put(artifacts, ATTACKS[attack])
    before = set(tmp_path.parent.rglob("*"))
    with pytest.raises(BundleRejected) as rejected:
        await bundles.prepare(CODE, None)
    assert str(rejected.value)
    left = set(tmp_path.parent.rglob("*")) - before
    allowed = tmp_path / "bundles"
    assert all(path.is_relative_to(allowed) for path in left)
    if "entry point" not in attack:
        assert not [path for path in left if path.is_file()]


async def test_sizes_that_lie(bundles: Bundles, artifacts: FolderArtifactStore) -> None:
    """The limit counts what comes out, not what the zip says of itself."""
    content = bytearray(_zip({"main.py": b"0" * (3 << 20)}))
    claimed = (3 << 20).to_bytes(4, "little")
    assert content.count(claimed) == 2
    await _put(artifacts, bytes(content.replace(claimed, (10).to_bytes(4, "little"))))
    with pytest.raises(BundleRejected):
        await bundles.prepare(CODE, None)


async def test_bundles_for_another_python(bundles: Bundles, artifacts: FolderArtifactStore) -> None:
    other = CODE | {"runtime": "PYTHON_3_13"}
    await _put(artifacts, _zip({"main.py": "print(1)\n"}))
    assert "3.13" in ((await bundles.prepare(other, None)).note or "")
    await _put(artifacts, _zip({"main.py": "def f[T](x: T) -> T: return x\n"}))
    with pytest.raises(BundleRejected, match="does not compile"):
        await bundles.prepare(other, None)
    for bomb in ("-" * 300_000 + "1", "a" + ".b" * 300_000):
        await _put(artifacts, _zip({"main.py": bomb}))
        with pytest.raises(BundleRejected, match="does not compile"):
            await bundles.prepare(other, None)
    await _put(artifacts, _zip({"main.py": "print(1)\n", "pack/fast.cpython-313-x86_64-linux-gnu.so": b"\x7fELF"}))
    with pytest.raises(BundleRejected, match=r"fast\.cpython-313"):
        await bundles.prepare(other, None)


# Requirements.


async def test_requirements_are_installed_once_for_all_bundles(
    bundles: Bundles, artifacts: FolderArtifactStore, wheels: Path, tmp_path: Path
) -> None:
    _wheel(wheels, "liba", "Requires-Dist: libb\n")
    _wheel(wheels, "libb")
    contents = [_zip({"main.py": f"print({n})\n", "requirements.txt": "liba==1.0  # ours\n"}) for n in range(3)]
    codes = []
    for number, content in enumerate(contents):
        await _put(artifacts, content, f"{number}.zip")
        codes.append(CODE | {"code": {"s3": {"bucket": "code", "prefix": f"{number}.zip"}}})
    made = await asyncio.gather(*(bundles.prepare(code, None) for code in codes))
    folder = made[0].dependencies
    assert folder is not None
    assert {bundle.dependencies for bundle in made} == {folder}
    assert (folder / "liba.py").exists()
    assert (folder / "libb.py").exists()
    assert list((folder / "__pycache__").glob("liba.*.pyc"))
    assert [entry.name for entry in (tmp_path / "dependencies").iterdir() if not entry.name.startswith(".")] == [
        folder.name
    ]


async def test_packed_packages_are_used_as_they_are(bundles: Bundles, artifacts: FolderArtifactStore) -> None:
    await _put(
        artifacts,
        _zip({"main.py": "", "requirements.txt": "nothing-there\n", "liba-1.0.dist-info/METADATA": "", "liba.py": ""}),
    )
    assert (await bundles.prepare(CODE, None)).dependencies is None


async def test_a_failed_installation_says_what_uv_said(
    bundles: Bundles, artifacts: FolderArtifactStore, wheels: Path
) -> None:
    await _put(artifacts, _zip({"main.py": "", "requirements.txt": "no-such-package==3.2.1\n"}))
    with pytest.raises(DependenciesFailed, match="no-such-package"):
        await bundles.prepare(CODE, None)
    _wheel(wheels, "liba")
    await _put(artifacts, _zip({"main.py": "", "requirements.txt": "liba==2.0\n"}))
    with pytest.raises(DependenciesFailed, match=r"liba==2\.0"):
        await bundles.prepare(CODE, None)


async def test_source_packages_are_not_built(
    bundles: Bundles, artifacts: FolderArtifactStore, wheels: Path, tmp_path: Path
) -> None:
    """Building runs the package's code, and it would run on the platform, outside any sandbox."""
    import tarfile

    marker = tmp_path / "ran"
    source = f"open({str(marker)!r}, 'w').close()\nfrom setuptools import setup\nsetup(name='libs', version='1.0')\n"
    with tarfile.open(wheels / "libs-1.0.tar.gz", "w:gz") as archive:
        for name, text in (("setup.py", source), ("PKG-INFO", "Metadata-Version: 2.1\nName: libs\nVersion: 1.0\n")):
            entry = tarfile.TarInfo(f"libs-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    await _put(artifacts, _zip({"main.py": "", "requirements.txt": "libs\n"}))
    with pytest.raises(DependenciesFailed, match="wheels only"):
        await bundles.prepare(CODE, None)
    assert not marker.exists()


async def test_hashes_are_honoured(bundles: Bundles, artifacts: FolderArtifactStore, wheels: Path) -> None:
    digest = _wheel(wheels, "liba")
    await _put(artifacts, _zip({"main.py": "", "requirements.txt": f"liba==1.0 \\\n    --hash=sha256:{digest}\n"}))
    assert (await bundles.prepare(CODE, None)).dependencies is not None
    await _put(artifacts, _zip({"main.py": "", "requirements.txt": f"liba==1.0 --hash=sha256:{'0' * 64}\n"}))
    with pytest.raises(DependenciesFailed, match=r"[Hh]ash"):
        await bundles.prepare(CODE, None)


@pytest.mark.parametrize(
    "line",
    [
        "-r /etc/shadow",
        "--index-url http://elsewhere/simple",
        "--find-links /",
        "-e .",
        ".",
        "./package",
        "/etc/passwd",
        "file:///etc/passwd",
        "liba @ file:///etc/passwd",
        "liba @ https://elsewhere/liba.whl",
        "git+https://elsewhere/liba",
        "liba==1.0 --config-settings x=y",
        "../outside-1.0-py3-none-any.whl",
        "a" + " " * 100_000 + "!",  # an expression's worst case
        "a" + " --hash=sha1:a" * 50_000 + "!",
        "a[" + "a " * 50_000 + "!",
    ],
)
async def test_requirements_name_packages_only(bundles: Bundles, artifacts: FolderArtifactStore, line: str) -> None:
    """Nothing else on this machine or another is read on a stranger's word."""
    await _put(artifacts, _zip({"main.py": "", "requirements.txt": f"# fine\n\n{line}\n"}))
    with pytest.raises(DependenciesFailed, match="line 3"):
        await bundles.prepare(CODE, None)


@pytest.mark.parametrize(
    "line",
    [
        "liba",
        "liba[x,y]>=1,<2",
        "liba ~= 1.0 ; python_version >= '3.9' and sys_platform == 'linux'",
        "liba==1.* ; extra == 'a'",
        "liba (==1.0)",
    ],
)
async def test_plain_requirements_are_taken(
    bundles: Bundles, artifacts: FolderArtifactStore, wheels: Path, line: str
) -> None:
    _wheel(wheels, "liba")
    await _put(artifacts, _zip({"main.py": "", "requirements.txt": line}))
    assert (await bundles.prepare(CODE, None)).dependencies is not None


async def test_the_platform_says_why_a_creation_failed(platform: Any) -> None:
    content = _zip({"main.py": "", "requirements.txt": "-r /etc/shadow\n"})
    await platform.upload(content)
    made = await platform.call("create_agent_runtime", agentRuntimeName="x", **platform.definition())
    failed = await platform.ready(made["agentRuntimeId"], "CREATE_FAILED")
    assert "requirements.txt line 1" in failed["failureReason"]
