"""Published files as TFDS datasets, downloaded once and checked against the sizes and checksums below: `--data tfds:NAME`.

Benchmarks whose published file could not be had and checked are read from local files only.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
from typing import Any, NamedTuple

from codellama_jax.config import CACHE
from codellama_jax.errors import UserError
from codellama_jax.system.files import user_path

PREFIX = "tfds:"
VERSION = "1.0.0"


class File(NamedTuple):
    """A published data file: its address, its bytes and their checksum."""

    url: str
    size: int
    sha256: str


GITHUB = """
humaneval             openai/human-eval           master  data/HumanEval.jsonl.gz                      44877
    b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef
infilling_single_line openai/human-eval-infilling master  data/HumanEval-SingleLineInfilling.jsonl.gz  75058
    1277073e7ddce163ef68598c2bca777f688a53df99422f097e37362090f88e1f
infilling_multi_line  openai/human-eval-infilling master  data/HumanEval-MultiLineInfilling.jsonl.gz   170082
    2f341612eee1d35da1357a4f365e0c0b3ba6e2b62eb491e88aaefa4855af0349
infilling_random_span openai/human-eval-infilling master  data/HumanEval-RandomSpanInfilling.jsonl.gz  89591
    b4f330d8a8ff97bf85d9def497dffcae4d741e506449386a877236e422e33e8d
humaneval_x_python    THUDM/CodeGeeX main codegeex/benchmark/humaneval-x/python/data/humaneval_python.jsonl.gz 53055
    5752fb122efddb0e9b47c77907ae6ce9a15aac4dea14e44c46032c831e6b987a
humaneval_x_cpp       THUDM/CodeGeeX main codegeex/benchmark/humaneval-x/cpp/data/humaneval_cpp.jsonl.gz       50995
    dcf2e280a1e91bbc3c5f90edb41397e8a9ac1ccc9f5d2b70082f0b0fbfb6dbb0
humaneval_x_java      THUDM/CodeGeeX main codegeex/benchmark/humaneval-x/java/data/humaneval_java.jsonl.gz     55950
    276f36db2eb7aeb864f36a19a2f4e1bb2460fb6e22ff100f0b5bedabe3799967
humaneval_x_js        THUDM/CodeGeeX main codegeex/benchmark/humaneval-x/js/data/humaneval_js.jsonl.gz         52009
    fe5d467f2c1a027b3f6f18d3729aca01f6458c1de2e2d1292a019c5aa9bed424
humaneval_x_go        THUDM/CodeGeeX main codegeex/benchmark/humaneval-x/go/data/humaneval_go.jsonl.gz         56743
    09126ef64ac68f87296c5f3781186aedc5dec799b114d9df99d6de4a715a7830
gsm8k                 openai/grade-school-math    master  grade_school_math/data/test.jsonl            749738
    3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14
"""
_words = iter(GITHUB.split())
FILES = {
    name: File(f"https://github.com/{repository}/raw/{branch}/{path}", int(size), sha256)
    for name, repository, branch, path, size, sha256 in zip(*[_words] * 6)
}


def records(name: str, cache: str = CACHE) -> list[dict[str, Any]]:
    """Downloads one of FILES unless it is in the cache. Raises UserError for an unknown name or another file than the published."""
    import tensorflow_datasets as tfds

    if name not in FILES:
        raise UserError(
            f"no published file {name} is known: there are {', '.join(FILES)};"
            " give a local file for another"
        )
    builder = _builder_class()(config=name, data_dir=user_path(cache) / "benchmarks")
    config = tfds.download.DownloadConfig(force_checksums_validation=True)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=config, file_format="array_record")
    except Exception as error:  # TFDS and the network have many of their own
        raise UserError(
            f"cannot download {FILES[name].url}: {str(error).splitlines()[0]}; give a local file with --data"
        ) from error
    return [json.loads(example["record"]) for example in builder.as_data_source("test")]


@functools.cache
def _builder_class() -> type:
    """Defines the TFDS builder on first use: importing TFDS takes a while, and most commands do not need it."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.checksums import UrlInfo

    class PublishedBenchmark(tfds.core.GeneratorBasedBuilder):
        """The records of a published file, each as one JSON text."""

        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, version=VERSION) for name in FILES]  # noqa: RUF012
        url_infos = {  # noqa: RUF012
            file.url: UrlInfo(file.size, file.sha256, file.url.rpartition("/")[2])
            for file in FILES.values()
        }

        def _info(self) -> tfds.core.DatasetInfo:
            features = tfds.features.FeaturesDict({"record": tfds.features.Text()})
            return tfds.core.DatasetInfo(
                builder=self, features=features, disable_shuffling=True
            )  # the order of the file

        def _split_generators(self, dl_manager: Any) -> dict:
            return {
                "test": self._generate_examples(
                    dl_manager.download(FILES[self.builder_config.name].url)
                )
            }

        def _generate_examples(self, path: Any) -> Any:
            data = path.read_bytes()
            text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
            return (
                (number, {"record": line})
                for number, line in enumerate(text.split("\n"))
                if line.strip()
            )

    return PublishedBenchmark
