"""A prepared corpus: complete, the same after kills and on every runner, and no half of one."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from etils import epath
from paths import ROOT

from codellama_jax.data import documents, prepared
from codellama_jax.data.prepare.contamination.index import BenchmarkText, Decontamination
from codellama_jax.data.prepare.inputs import parts_of
from codellama_jax.data.prepare.policies import POLICIES
from codellama_jax.data.prepare.preparation import Preparation, PrepareConfig
from codellama_jax.data.prepare.readers.base import InputOptions
from codellama_jax.data.prepare.runners import Runner
from codellama_jax.errors import UserError

INPUTS = InputOptions(part_bytes=2000)
SECRET = "the committee has chosen seven purple elephants to carry the lamps over the old bridge"
BENCHMARK = BenchmarkText("toy", "toy/1", "solution", SECRET)
CONFIG = PrepareConfig(
    policy=dataclasses.replace(
        POLICIES["code_llama"],
        pii=("email",),
        decontamination=Decontamination(substring=True),
    ),
    inputs=INPUTS,
    split_by="file",
    validation_fraction=0.2,
    shard_bytes=1000,
)
PROGRAM = """
import sys

from etils import epath
from test_preparation import prepare
"""


def source(number):
    lines = [
        f"def function_{number}_{i}(value):\n    return value * {number + i}\n" for i in range(9)
    ]
    return "\n".join(lines)


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(24):
        (folder / f"file_{number:02d}.py").write_text(source(number))
    (folder / "copy.py").write_text(source(3))
    (folder / "near.py").write_text(source(5) + "\n# the last line is new\n")
    (folder / "mail.py").write_text(source(30) + "\nAUTHOR = 'jane.roe@company.com'\n")
    (folder / "leak.py").write_text(f"{source(31)}\nTEXT = '''{SECRET}'''\n")
    (folder / "generated.py").write_text("# do not edit\n" + source(32))
    (folder / "latin.py").write_bytes(b"x = '\xe9'\n")
    return folder


def prepare(folder, out, runner=None, config=CONFIG):
    parts = parts_of(str(folder), "", config.inputs)
    return Preparation(
        parts, config, epath.Path(out), runner or Runner(), str, [BENCHMARK], {"words": count_words}
    ).run()


def count_words(text):
    return len(text.split())


def texts(out):
    opened = prepared.open_corpus(epath.Path(out))
    found = {}
    for split in prepared.SPLITS:
        for document in getattr(opened, split):
            found[document["id"].decode()] = document["text"].decode()
    return found


def test_what_is_kept_dropped_and_counted(corpus, tmp_path):
    result = prepare(corpus, tmp_path / "out")
    kept = texts(tmp_path / "out")
    # The first of equal files is kept, in the order of the input: copy.py before file_03.py.
    names = {f"corpus/file_{number:02d}.py" for number in range(24) if number != 3}
    assert set(kept) == names | {"corpus/copy.py", "corpus/mail.py"}
    assert "jane.roe" not in kept["corpus/mail.py"] and "@" in kept["corpus/mail.py"]
    report = result.report
    assert report["documents"]["read"]["documents"] == 30
    assert report["documents"]["dropped"] == {"generated": 1, "not_utf8": 1}
    assert report["documents"]["redacted"] == {"email": 1}
    dropped = {"exact_duplicate": 1, "near_duplicate": 1, "contaminated": 1}
    assert report["dataset"]["dropped"] == dropped
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    splits = manifest["splits"]
    assert sum(split["documents"] for split in splits.values()) == len(kept)
    words = sum(count_words(text) for text in kept.values())
    assert sum(manifest["tokens"]["words"].values()) == words
    assert splits["train"]["shards"] > 2 and splits["validation"]["documents"]


def test_documents_of_few_characters_per_token_are_dropped(corpus, tmp_path):
    def fertility(least):
        policy = dataclasses.replace(CONFIG.policy, min_fertility={"Python": least})
        return dataclasses.replace(CONFIG, policy=policy)

    # Tokens are words here, of about 10 characters in these files.
    kept = prepare(corpus, tmp_path / "out", config=fertility(3.0)).report["documents"]
    assert "fertility" not in kept["dropped"]
    with pytest.raises(UserError, match=r"no document is kept: 28 with too many tokens"):
        prepare(corpus, tmp_path / "out", config=fertility(100.0))


def test_repositories_are_held_out_as_a_whole(tmp_path):
    lines = []
    for number in range(200):
        row = {
            "content": source(number),
            "repo_name": f"owner/{number % 20}",
            "path": f"{number}.py",
        }
        lines.append(json.dumps(row))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    config = dataclasses.replace(CONFIG, split_by="repository", policy=POLICIES["none"])
    prepare(tmp_path / "rows.jsonl", tmp_path / "out", config=config)
    opened = prepared.open_corpus(tmp_path / "out")
    repositories = []
    for split in (opened.train, opened.validation):
        numbers = [int(document["text"].decode().split("_")[1]) for document in split]
        repositories.append({number % 20 for number in numbers})
    assert repositories[0] | repositories[1] == set(range(20))
    assert not repositories[0] & repositories[1] and repositories[1]


@pytest.mark.parametrize("split_by", ["file", "repository"])
def test_the_pieces_of_a_document_are_in_one_split(tmp_path, split_by):
    """Decontamination removes a passage; these files are of no repository."""
    (tmp_path / "corpus").mkdir()
    # A gram in more than ten documents is not removed.
    for number in range(8):
        text = f"# of the benchmark: {SECRET}\n".join([source(number) * 2] * 5)
        (tmp_path / "corpus" / f"{number}.py").write_text(text)
    rules = Decontamination(ngrams=True, margin=10)
    policy = dataclasses.replace(POLICIES["none"], decontamination=rules)
    config = dataclasses.replace(
        CONFIG, policy=policy, split_by=split_by, validation_fraction=0.4, block_characters=300
    )
    prepare(tmp_path / "corpus", tmp_path / "out", config=config)
    opened = prepared.open_corpus(tmp_path / "out")
    names = []
    for split in (opened.train, opened.validation):
        ids = [document["id"].decode() for document in split]
        assert any("~1#" in name for name in ids)
        names.append({name.partition("~")[0] for name in ids})
    assert names[0] | names[1] == {f"corpus/{number}.py" for number in range(8)}
    assert not names[0] & names[1]


def test_the_same_command_again_changes_nothing_and_repairs_a_lost_shard(corpus, tmp_path):
    out = tmp_path / "out"
    prepare(corpus, out)
    manifest = (out / "manifest.json").read_bytes()
    files = {path: path.read_bytes() for path in sorted(out.glob("data-*/*"))}
    prepare(corpus, out)
    assert (out / "manifest.json").read_bytes() == manifest
    shard = next(path for path in files if "train" in path.name)
    for damage in (shard.unlink, lambda: os.truncate(shard, 10)):
        damage()
        prepare(corpus, out)
        assert {path: path.read_bytes() for path in files} == files
    assert (out / "manifest.json").read_bytes() == manifest


def test_an_option_repeats_only_the_stages_that_it_changes(corpus, tmp_path):
    prepare(corpus, tmp_path / "out")
    first = {path.name for path in (tmp_path / "out" / "work").iterdir()}
    config = dataclasses.replace(CONFIG, block_characters=100)
    prepare(corpus, tmp_path / "out", config=config)
    second = {path.name for path in (tmp_path / "out" / "work").iterdir()}
    changed = {name.partition("-")[0] for name in first ^ second}
    assert changed == {"dataset"} and len(first) == len(second)
    assert all(len(text) <= 150 for text in texts(tmp_path / "out").values())
    assert len(list((tmp_path / "out").glob("data-*"))) == 1


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + textwrap.dedent(program), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'data' / 'prepare'}:{ROOT / 'tests'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.parametrize("writes", [pytest.param(5, marks=pytest.mark.slow), 30])
def test_a_kill_leaves_nothing_that_is_taken_for_complete(corpus, tmp_path, writes):
    prepare(corpus, tmp_path / "whole")
    # The process dies right before the write of its Nth state file.
    program = """
    import os, signal
    from codellama_jax.system import files
    count, original = 0, os.replace
    def replace(source, target):
        global count
        count += 1
        if count == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        original(source, target)
    os.replace = replace
    prepare(sys.argv[1], sys.argv[2])
    """
    killed = start(program, corpus, tmp_path / "out", writes)
    killed.wait(120)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(UserError, match=r"manifest\.json|does not exist"):
        prepared.read_manifest(f"prepared:{tmp_path / 'out'}")
    prepare(corpus, tmp_path / "out")
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("whole", "out")]
    assert manifests[0] == manifests[1]
    assert texts(tmp_path / "out") == texts(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_the_next_start_continues(corpus, tmp_path, monkeypatch):
    prepare(corpus, tmp_path / "whole")
    from codellama_jax.data.prepare import shards

    count = 0

    def full(*arguments):
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(28, "No space left on device", "/corpus/shard")
        return original(*arguments)

    original = shards.copy_file
    monkeypatch.setattr(shards, "copy_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        prepare(corpus, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    prepare(corpus, tmp_path / "out")
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("whole", "out")]
    assert manifests[0] == manifests[1]


def test_two_processes_make_the_same_corpus(corpus, tmp_path):
    prepare(corpus, tmp_path / "one")
    prepare(corpus, tmp_path / "two", Runner(processes=2))
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("one", "two")]
    assert manifests[0] == manifests[1]


def test_the_progress_of_a_stage_ends_with_all_parts(corpus, tmp_path, capsys):
    prepare(corpus, tmp_path / "out")
    assert "parts of dataset: 8 of 8" in capsys.readouterr().err


def test_nothing_kept_is_one_line(tmp_path):
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.py").write_text("# do not edit\nx = 1\n")
    with pytest.raises(UserError, match=r"^no document is kept: 1 generated \(first: only/a.py\)$"):
        prepare(tmp_path / "only", tmp_path / "out")


def test_documents_are_read_from_the_shards_that_tfds_reads(corpus, tmp_path):
    import tensorflow_datasets as tfds

    prepare(corpus, tmp_path / "out")
    (data,) = (tmp_path / "out").glob("data-*")
    source = tfds.builder_from_directory(data).as_data_source("train")
    opened = prepared.open_corpus(tmp_path / "out").train
    assert len(source) == len(opened)
    for index in range(len(source)):
        assert {name: source[index][name] for name in documents.FIELDS} == opened[index]
        assert source[index]["language"] == b"Python"
    shutil.rmtree(data)
