"""Checksums of exported and imported weights, and the permissions of their files."""

import json
import os
import shutil
import stat

import pytest

from codellama_jax.errors import UserError
from codellama_jax.weights import commands, integrity


@pytest.fixture(scope="module")
def checked(folders, tmp_path_factory):
    """An import and both exports with checksums, made under the umask 022."""
    folder = tmp_path_factory.mktemp("checked")
    before = os.umask(0o022)
    try:
        commands.Import(str(folders / "hf"), str(folder / "run"), integrity=True)()
        for kind in ("hf", "meta"):
            run, target = str(folders / "run"), str(folder / kind)
            commands.Export(run, target, kind, integrity=True)()
    finally:
        os.umask(before)
    return folder


def test_files_that_are_shared_follow_the_umask(checked):
    for path in checked.rglob("*"):
        expected = 0o755 if path.is_dir() else 0o644
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


@pytest.mark.parametrize("kind", ["run", "hf", "meta"])
def test_every_file_has_a_checksum_and_a_flipped_bit_is_found(checked, kind, capsys):
    folder = checked / kind
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    listed = json.loads((folder / integrity.NAME).read_text())["files"]
    assert set(listed) == files - {integrity.NAME}
    commands.Check(str(folder), integrity=True)()
    assert f"{len(listed)} files of {folder} match" in capsys.readouterr().out
    largest = max((folder / name for name in listed), key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    for position in (0, len(data) // 2, len(data) - 1):
        largest.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(UserError, match=f"checksums of .*{largest.name} do not match"):
            commands.Check(str(folder), integrity=True)()
    largest.unlink()
    with pytest.raises(UserError, match=f"lacks .*{largest.name}, listed in checksums.json"):
        commands.Check(str(folder), integrity=True)()
    largest.write_bytes(data)


SUM = "0" * 64


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "has no checksums.json: import and export write it with --integrity"),
        ("{", "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"algorithm": "md5", "files": {}}', "algorithm must be 'sha256'"),
        ('{"algorithm": "sha256", "files": {}}', "files must be"),
        ('{"algorithm": "sha256", "files": []}', "files must be"),
        ('{"algorithm": "sha256", "files": {"a": 5}}', "the entry 'a' must be"),
        (f'{{"algorithm": "sha256", "files": {{"../a": "{SUM}"}}}}', "the entry '../a' must be"),
        (f'{{"algorithm": "sha256", "files": {{"/etc/a": "{SUM}"}}}}', "must be a path inside"),
    ],
)
def test_checksums_that_are_none_are_one_line(tmp_path, text, message):
    if text is not None:
        (tmp_path / integrity.NAME).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        commands.Check(str(tmp_path), integrity=True)()
    assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_is_not_exported(folders, tmp_path):
    shutil.copytree(folders / "run", tmp_path / "run")
    for data in (tmp_path / "run").rglob("d/*"):  # TensorStore's data, one copy per process too
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(UserError, match="cannot be read") as error:
        commands.Export(str(tmp_path / "run"), str(tmp_path / "out"), "hf")()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_pipe_in_place_of_a_file_is_refused_and_never_waited_for(checked, tmp_path):
    folder = tmp_path / "hf"
    shutil.copytree(checked / "hf", folder)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(UserError, match=r"config\.json is not a regular file"):
        commands.Check(str(folder), integrity=True)()


def test_a_pipe_in_a_checkpoint_is_refused_and_never_waited_for(folders, tmp_path):
    """Orbax opens every file that it finds, in threads that nothing can end."""
    shutil.copytree(folders / "run", tmp_path / "run")
    file = next((tmp_path / "run").rglob("_CHECKPOINT_METADATA"))
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="_CHECKPOINT_METADATA is not a regular file: remove it"):
        commands.Export(str(tmp_path / "run"), str(tmp_path / "out"), "hf")()
