"""Whether a result may stand beside the papers' numbers.

Only one on all of the published tasks may.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from codellama_jax.benchmarks import paper, published
from codellama_jax.benchmarks.benchmark import files_of
from codellama_jax.benchmarks.data_files import read_values
from codellama_jax.benchmarks.settings import Options

# Checksums of the records of published files, as `checksum` computes them: the same for a file that
# was unpacked, sorted or written anew. The files are those of `published.FILES`, MBPP's mbpp.jsonl
# and MultiPL-E's HumanEval with reworded prompts as of June 2023.
PUBLISHED = {
    "humaneval": ("adcce144f7187b8296e488921474e692ca26bf4380b4dca91cd28f2a4b950bc2",),
    "humaneval_infilling": (
        "5180559a06759a8377a8b0fc10d7a9afa6416565f5c10edafd26e37f080c8867",  # single line
        "9241cdcdf492b1ab4a76ee3deba9fcb9f449eb508c2e208f52dfe154640fde4f",  # several lines
        "0c76f8e6520906ea767b6890494442ea0f378764791084a8a9374d7b7fb0efdc",  # random span
    ),
    "humaneval_x": (
        "b8f2b5916749f707c12ac8a19647febc186224ba6c45662009ff1d77b4bbed1b",  # Python
        "4f52464e3687e389dab22743809729998d1366ed5ecc12b6dcf1153fa172a564",  # C++
        "fec402e484d81b1fa6d73ac6de52500fc3b6f2c1e72231fa2edad9303623cefc",  # Java
        "507dff0f021caef8ab87fb3f3de096722c9280534ac2a474c332d4d2f317a0a8",  # JavaScript
        "17de98ef1cd5a8e665bac043e9fd3695b494523505ae9b8057f659b056bd7891",  # Go
    ),
    "gsm8k": ("ae6a977c3224d773ee7384cbf8d047eca5ac483cc88a182edc96fa2a90c2c31e",),
    "mbpp": ("a6fe433e048368a7827bca9bf282dd73afd34a38fbe9e3c9bb4101d848d81848",),
    "multipl_e": (
        "c666769088ded6cfa193b1abc563b442743b27237f3d3b162abd9c43ca47df08",  # C++
        "de39f1559f4eb13d35595249414869c50ad0d8f66d1046ec0ff81374d1cd301e",  # Java
        "a26756f2f618363085468e972873cc0b54fbc9165c3cc11a0483a515278d23b5",  # PHP
        "f566e92c79db43fede8f0e5cf55093cdc50453dff99ae74e71ac5def36a3cc54",  # TypeScript
        "4478b2c81baa12350d4cbaec228648593b682ac7a5ac6cec24b6164f59b4a025",  # C#
        "d50e80e5232d91bf2ef57bc7ba6ed4e5a521106741bbeffaffcfd773c94f73ff",  # Bash
    ),
}


def checksum(records: Iterable[Any]) -> str:
    """Returns the SHA-256 of records, whatever their order and the layout of their file."""
    lines = sorted(json.dumps(record, sort_keys=True) for record in records)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def why_not(suite: str, measured: str, options: Options, partial: bool) -> str:
    """Returns why a result must not be compared with the papers', or "" if it may be.

    Args:
        suite: the name of the benchmark on the command line.
        measured: the name of its numbers in `paper`.
        options: where its data is.
        partial: whether tasks lack a sample.
    """
    if not paper.numbers(measured):
        return "no paper's number of this measure is known"
    if partial:
        return "only some of the tasks have samples"
    if suite == "mbpp" and options.all_tasks:
        return "the papers' numbers are those of the test split, and --all-tasks was given"
    if options.data.startswith(published.PREFIX):
        return ""  # downloaded with its checksum
    if suite not in PUBLISHED:
        return f"no checksum of the published data of {suite} is known"
    for file in _files(suite, options):
        if checksum(value for _, value in read_values(file).values) not in PUBLISHED[suite]:
            return f"the records of {file} are not those of the published file"
    return ""


def _files(suite: str, options: Options) -> list:
    files = files_of(options.data, (".jsonl", ".jsonl.gz", ".json"))
    if suite == "gsm8k" and len(files) > 1:
        return [file for file in files if file.name == "test.jsonl"]
    return files
