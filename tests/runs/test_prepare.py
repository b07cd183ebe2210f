"""The verb `prepare`: what it refuses, and what it never touches."""

import re

import pytest

from codellama_jax.errors import UserError
from codellama_jax.runs.prepare import Prepare


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Runs the verb in a folder with a folder `src` of two documents."""
    (tmp_path / "src").mkdir()
    for name in ("one", "two"):
        (tmp_path / "src" / f"{name}.py").write_text(f"def {name}():\n    return {name!r}\n")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        Prepare.parse([*arguments], "codellama-jax prepare", "")()

    return run


def test_a_corpus_is_prepared_and_prepared_again(prepare, tmp_path, capsys):
    for _ in range(2):
        prepare("src", "--out", "out", "--split-by", "file")
        assert "--corpus.code prepared:" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("name", ["work/thesis/chapter.txt", "manifest.json", "data-2024/a.csv"])
def test_a_folder_with_other_files_is_refused_and_kept(prepare, tmp_path, name):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(UserError, match=f"holds other files.*{name.partition('/')[0]}"):
        prepare("src", "--out", "mine", "--split-by", "file")
    assert path.read_text() == "{}"


def test_other_files_in_the_folder_of_a_corpus_are_kept(prepare, tmp_path):
    prepare("src", "--out", "out", "--split-by", "file")
    others = [tmp_path / "out" / name for name in ("data-2024", "work/thesis", "work/dataset-old")]
    for other in others:
        other.mkdir()
    prepare("src", "--out", "out", "--split-by", "file", "--policy", "none")
    assert all(other.exists() for other in others)
    # The data and stages of the first command are gone.
    assert len(list((tmp_path / "out").glob("data-*"))) == 2


@pytest.mark.parametrize("out", ["src/out", "src", "../src/out"])
def test_a_corpus_is_not_written_into_its_input(prepare, tmp_path, monkeypatch, out):
    (tmp_path / "below").mkdir()
    source = "src"
    if out.startswith(".."):
        monkeypatch.chdir(tmp_path / "below")
        source = "../src"
    with pytest.raises(UserError, match=r"--out is .*(outside of the input|holds other files)"):
        prepare(source, "--out", out, "--split-by", "file")
    assert sorted(path.name for path in (tmp_path / "src").iterdir()) == ["one.py", "two.py"]


def test_a_benchmark_that_is_missing_names_the_option(prepare):
    rule = "--policy.decontamination.substring"
    with pytest.raises(UserError, match=r"^--benchmark humaneval=no\.gz: there is no file"):
        prepare("src", "--out", "out", "--benchmark", "humaneval=no.gz", rule)


def test_one_repository_is_not_offered_for_training(prepare, tmp_path, capsys):
    (tmp_path / "src" / "two.py").unlink()
    prepare("src", "--out", "out", "--split-by", "file")
    out, err = capsys.readouterr()
    assert "--corpus.code" not in out and "add inputs" in err


def test_a_damaged_part_of_a_stage_names_the_folder_to_delete(prepare, tmp_path):
    prepare("src", "--out", "out", "--split-by", "file")
    [part] = (tmp_path / "out" / "work").glob("documents-*/part-*.parquet")
    part.write_bytes(b"damaged")
    with pytest.raises(
        UserError, match=rf"part-000000\.parquet cannot be read .*{part.parent.name} and"
    ):
        prepare("src", "--out", "out", "--split-by", "file", "--block-chars", "100")


def test_the_fertility_of_a_policy_needs_a_tokenizer(prepare):
    with pytest.raises(UserError, match=r"--policy\.min-fertility counts tokens: pass --tokenizer"):
        prepare("src", "--out", "out", "--policy.min-fertility", "Python", "2.5")


def test_every_option_of_policy_and_columns_has_a_sentence(capsys):
    with pytest.raises(SystemExit):
        Prepare.parse(["--help"], "codellama-jax prepare", "")
    text = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    ends = re.findall(r"(\S+) \(default:", text.partition("--policy.languages")[2])
    assert len(ends) > 50
    assert [end for end in ends if not end.endswith(".")] == []
