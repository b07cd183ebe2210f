"""The page's built files: complete, up to date, and without outside addresses."""

import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from paths import ROOT

from codellama_jax.serving import page

PAGE = ROOT / "codellama_jax" / "serving" / "page"
BUILT = PAGE / "built"
FILES = {"index.html", "page.js", "page.css", "icon.svg", "LICENSES.txt", "manifest.json"}
# Names of XML vocabularies, which are never fetched.
NAMESPACE = re.compile(r"https?://www\.w3\.org/(2000/svg|1999/xhtml|1998/Math/MathML)\b")
ADDRESS = re.compile(r"\b(?:https?|wss?)://|[\"'(=]\s*//\w|\blocalhost\b|\b\d+\.\d+\.\d+\.\d+\b")
PACKAGES = PAGE / "node_modules"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hash_of_sources() -> str:
    """Returns the hash that build.mjs records."""
    paths = [path for path in PAGE.iterdir() if path.is_file() and path.name != "README.md"]
    paths += [*(PAGE / "source").iterdir(), *(PAGE / "styles").iterdir()]
    names = sorted(path.relative_to(PAGE).as_posix() for path in paths)
    lines = [f"{name} {sha256((PAGE / name).read_bytes())}\n" for name in names]
    return sha256("".join(lines).encode())


def test_the_built_files_match_the_sources():
    """A failure means that `make page` must be run again."""
    manifest = json.loads((BUILT / "manifest.json").read_text("utf-8"))
    assert manifest["sources"] == hash_of_sources()
    assert {path.name for path in BUILT.iterdir()} == FILES
    hashes = {name: sha256((BUILT / name).read_bytes()) for name in FILES - {"manifest.json"}}
    assert manifest["files"] == hashes


@pytest.mark.parametrize("name", ["index.html", "page.js", "page.css", "icon.svg"])
def test_a_built_file_names_no_other_host(name):
    text = NAMESPACE.sub("", (BUILT / name).read_text("utf-8"))
    assert not ADDRESS.findall(text)


def test_the_server_sends_the_built_files():
    assert page.FOLDER == BUILT
    assert "script-src 'self';" in page.POLICY


def test_the_page_has_nothing_inline():
    """A content security policy without 'unsafe-inline' would block it."""
    html = (BUILT / "index.html").read_text("utf-8")
    assert re.findall(r"<script\b[^>]*>[^<]*</script>", html) == [
        '<script type="module" src="page/page.js"></script>'
    ]
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|data:", html)
    for name in re.findall(r"(?:src|href)=\"page/([^\"]+)\"", html):
        assert (BUILT / name).is_file()


def test_the_lock_of_packages_names_no_registry():
    lock = json.loads((PAGE / "package-lock.json").read_text("utf-8"))
    packages = [package for path, package in lock["packages"].items() if path]
    assert all("integrity" in package for package in packages)
    assert not any("resolved" in package for package in packages)


def run(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=PAGE, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
@pytest.mark.skipif(not PACKAGES.exists(), reason="`make page` has not installed the packages")
def test_a_build_gives_the_committed_files(tmp_path):
    run("npm", "run", "check")
    run("node", "build.mjs", tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (BUILT / name).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.skipif(not PACKAGES.exists(), reason="`make page` has not installed the packages")
def test_the_page_in_a_browser():
    run("npm", "test")
