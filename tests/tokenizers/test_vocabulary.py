"""The vocabulary of the models follows the size of the tokenizer."""

import dataclasses

import pytest

from codellama_jax import overrides
from codellama_jax.checkpoints.identity import changes
from codellama_jax.config import TokenizerConfig, to_dict
from codellama_jax.errors import UserError
from codellama_jax.runs.commands import PlanOptions, load_experiment
from codellama_jax.runs.corpus import check_tokenizer
from codellama_jax.tokenizers.sentencepiece import train


def changed(experiment, **given):
    return overrides.apply(experiment, overrides.options(experiment) | given)


def sizes(experiment):
    return {s.model.vocab_size for stages in experiment.arms.values() for s in stages.values()}


@pytest.fixture
def quickstart():
    return load_experiment(PlanOptions("quickstart"))[0]


def test_one_option_changes_both(quickstart):
    assert sizes(changed(quickstart, tokenizer=TokenizerConfig(pieces=400))) == {416}
    assert sizes(changed(quickstart, tokenizer=quickstart.tokenizer)) == {1024}


def test_a_kind_with_sentinels_adds_none(quickstart):
    starcoder = changed(quickstart, tokenizer=TokenizerConfig(pieces=1008, kind="starcoder"))
    assert sizes(starcoder) == {1008}
    assert sizes(changed(starcoder, tokenizer=TokenizerConfig(pieces=400, kind="codex"))) == {416}


def test_a_resume_refuses_another_kind(quickstart):
    other = dataclasses.replace(quickstart, tokenizer=TokenizerConfig(pieces=1008, kind="gpt2"))
    assert changes(to_dict(quickstart), other) == ["tokenizer.kind: sentencepiece -> gpt2"]
    older = to_dict(quickstart)
    del older["tokenizer"]["kind"]  # as runs of earlier versions are
    assert changes(older, quickstart) == []


def test_a_vocabulary_given_by_option_is_kept(quickstart):
    stage = quickstart.arms["main"]["code"]
    given = dataclasses.replace(stage, model=dataclasses.replace(stage.model, vocab_size=400))
    both = changed(quickstart, tokenizer=TokenizerConfig(pieces=400), code=given)
    stages = both.arms["main"]
    assert [stages[name].model.vocab_size for name in ("code", "long_context")] == [400, 416]


def test_a_published_tokenizer_changes_nothing(quickstart):
    given = TokenizerConfig(path="tokenizer.model", pieces=400)
    assert sizes(changed(quickstart, tokenizer=given)) == {1024}


def test_the_trained_tokenizer_fits(quickstart, tmp_path, capsys):
    small = changed(quickstart, tokenizer=TokenizerConfig(pieces=304))
    tokenizer = train(["def f(x):\n    return x"], 304, tmp_path)
    check_tokenizer(small, tokenizer)
    with pytest.raises(UserError) as error:
        check_tokenizer(quickstart, tokenizer)
    assert str(error.value) == (
        "main.code.model.vocab_size is 1024 and the tokenizer has 304 pieces, 320 with the "
        "infilling sentinels: pass --code.model.vocab-size 320 --long-context.model.vocab-size 320"
    )
    assert capsys.readouterr().out == ""


def test_limits_of_the_tokenizer_are_printed(quickstart, tmp_path, capsys):
    tokenizer = dataclasses.replace(train(["def f(x):"], 1008, tmp_path), limits=("it is lossy",))
    check_tokenizer(quickstart, tokenizer)
    assert capsys.readouterr().out == "note on the tokenizer: it is lossy\n"
