"""Published benchmark files as TFDS datasets: `--data tfds:NAME` downloads one.

A file is downloaded once and checked against its size and checksum below. Benchmarks whose
published file was not available when this table was made are read from local files only.
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
from codellama_jax.system.files import GZIP_MAGIC, reason, user_path

PREFIX = "tfds:"
VERSION = "1.0.0"
INFILLING = "https://github.com/openai/human-eval-infilling/raw/master/data"
HUMANEVAL_X = "https://github.com/THUDM/CodeGeeX/raw/main/codegeex/benchmark/humaneval-x"
GRADE_SCHOOL_MATH = "https://github.com/openai/grade-school-math/raw/master/grade_school_math/data"


class File(NamedTuple):
    """A published data file: its address, size in bytes, and SHA-256 checksum."""

    url: str
    size: int
    sha256: str


# Checksums are those of the files as downloaded.
FILES = {
    "humaneval": File(
        "https://github.com/openai/human-eval/raw/master/data/HumanEval.jsonl.gz",
        44877,
        "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    ),
    "infilling_single_line": File(
        f"{INFILLING}/HumanEval-SingleLineInfilling.jsonl.gz",
        75058,
        "1277073e7ddce163ef68598c2bca777f688a53df99422f097e37362090f88e1f",
    ),
    "infilling_multi_line": File(
        f"{INFILLING}/HumanEval-MultiLineInfilling.jsonl.gz",
        170082,
        "2f341612eee1d35da1357a4f365e0c0b3ba6e2b62eb491e88aaefa4855af0349",
    ),
    "infilling_random_span": File(
        f"{INFILLING}/HumanEval-RandomSpanInfilling.jsonl.gz",
        89591,
        "b4f330d8a8ff97bf85d9def497dffcae4d741e506449386a877236e422e33e8d",
    ),
    "humaneval_x_python": File(
        f"{HUMANEVAL_X}/python/data/humaneval_python.jsonl.gz",
        53055,
        "5752fb122efddb0e9b47c77907ae6ce9a15aac4dea14e44c46032c831e6b987a",
    ),
    "humaneval_x_cpp": File(
        f"{HUMANEVAL_X}/cpp/data/humaneval_cpp.jsonl.gz",
        50995,
        "dcf2e280a1e91bbc3c5f90edb41397e8a9ac1ccc9f5d2b70082f0b0fbfb6dbb0",
    ),
    "humaneval_x_java": File(
        f"{HUMANEVAL_X}/java/data/humaneval_java.jsonl.gz",
        55950,
        "276f36db2eb7aeb864f36a19a2f4e1bb2460fb6e22ff100f0b5bedabe3799967",
    ),
    "humaneval_x_js": File(
        f"{HUMANEVAL_X}/js/data/humaneval_js.jsonl.gz",
        52009,
        "fe5d467f2c1a027b3f6f18d3729aca01f6458c1de2e2d1292a019c5aa9bed424",
    ),
    "humaneval_x_go": File(
        f"{HUMANEVAL_X}/go/data/humaneval_go.jsonl.gz",
        56743,
        "09126ef64ac68f87296c5f3781186aedc5dec799b114d9df99d6de4a715a7830",
    ),
    "gsm8k": File(
        f"{GRADE_SCHOOL_MATH}/test.jsonl",
        749738,
        "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    ),
}


def records(name: str, cache: str = CACHE) -> list[dict[str, Any]]:
    """Returns the records of one of FILES, downloaded unless it is in the cache.

    Raises UserError for an unknown name, and if the downloaded file is not the published one.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    if name not in FILES:
        raise UserError(
            f"no published file {name} is known: there are {', '.join(FILES)};"
            " give a local file for another"
        )
    builder = _builder_class()(config=name, data_dir=user_path(cache) / "benchmarks")
    # A file that differs from the published one is an error, not another version of it.
    config = tfds.download.DownloadConfig(force_checksums_validation=True)
    tfds.disable_progress_bar()
    try:
        # TFDS prints a banner, which would be between the messages of the evaluation.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(download_config=config, file_format="array_record")
    except NonMatchingChecksumError as error:
        # Without the message of TFDS, which begins with a path that may be longer than `reason`.
        problem = "the file has the wrong checksum; try again, or give a local file with --data"
        raise UserError(f"cannot download {FILES[name].url}: {problem}") from error
    except Exception as error:
        # TFDS and its HTTP client raise many types that have no common base class.
        raise UserError(
            f"cannot download {FILES[name].url}: {reason(error)}; give a local file with --data"
        ) from error
    # TFDS needs a fixed set of features; records differ, so each is one JSON string.
    return [json.loads(example["record"]) for example in builder.as_data_source("test")]


@functools.cache
def _builder_class() -> type:
    """Defines the TFDS builder on first use.

    Importing TFDS takes seconds, and most commands do not need it.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.checksums import UrlInfo

    configs = [tfds.core.BuilderConfig(name=name, version=VERSION) for name in FILES]
    checksums = {}
    for file in FILES.values():
        # TFDS stores the download under this name.
        file_name = file.url.rpartition("/")[2]
        checksums[file.url] = UrlInfo(file.size, file.sha256, file_name)

    class PublishedBenchmark(tfds.core.GeneratorBasedBuilder):
        """The records of a published file, each as one JSON string."""

        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = configs
        # TFDS compares each download with these.
        url_infos = checksums

        def _info(self) -> tfds.core.DatasetInfo:
            features = tfds.features.FeaturesDict({"record": tfds.features.Text()})
            # Without shuffling, records keep the order of the file, which numbers the tasks.
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager: Any) -> dict:
            url = FILES[self.builder_config.name].url
            return {"test": self._generate_examples(dl_manager.download(url))}

        def _generate_examples(self, path: Any) -> Any:
            data = path.read_bytes()
            if data.startswith(GZIP_MAGIC):
                data = gzip.decompress(data)
            for number, line in enumerate(data.decode().split("\n")):
                if line.strip():
                    yield number, {"record": line}

    return PublishedBenchmark
