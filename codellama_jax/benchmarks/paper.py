"""What the papers measured, beside which results are printed: model, then percentages in the order of COLUMNS."""

from __future__ import annotations

PASS = ("pass@1", "pass@10", "pass@100")
GRADES = ("introductory", "interview", "competition")


def _crossed(groups: tuple, measures: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{group} {measure}" for group in groups for measure in measures)


COLUMNS = {
    "humaneval": PASS,  # Code Llama, table 2; Codex, table 1; PanGu-Coder2, table 2
    "mbpp": PASS,  # table 2
    "mbpp_zero_shot": ("pass@1",),  # table 8
    "apps": _crossed(GRADES, ("pass@5", "pass@10", "pass@100")),  # table 3
    "apps_zero_shot": _crossed(GRADES, ("pass@5", "pass@10", "pass@100")),  # table 15
    "multipl_e": _crossed(("cpp", "java", "php", "ts", "cs", "sh"), ("pass@1",)),  # table 4
    "humaneval_x": _crossed(("python", "cpp", "java", "js", "go"), PASS),  # CodeGeeX
    "humaneval_infilling": _crossed(
        ("SingleLineInfilling", "MultiLineInfilling", "RandomSpanInfilling"), ("pass@1",)
    ),  # table 14
    "single_line": _crossed(("py", "java", "js"), ("exact",)),  # table 6
    "docstring": ("bleu",),  # table 13
    "gsm8k": ("solved",),  # table 12
    "lcc": _crossed(("python", "java", "csharp"), ("exact", "bleu")),  # table 7
    "key_retrieval": _crossed(
        tuple(f"{length}@{p}" for length in (8000, 16000, 24000) for p in (0, 0.2, 0.4)),
        ("retrieved",),
    ),  # table 17
}

ROWS = {
    "humaneval": """
        Codex 12B 28.81 46.81 72.31
        Llama 2 7B 12.2 25.2 44.4
        Code Llama 7B 33.5 59.6 85.9
        Code Llama 13B 36.0 69.4 89.8
        Code Llama 34B 48.8 76.8 93.0
        Code Llama 70B 53.0 84.6 96.2
        Code Llama Instruct 7B 34.8 64.3 88.1
        Code Llama Instruct 34B 41.5 77.2 93.5
        Code Llama Python 7B 38.4 70.3 90.6
        Code Llama Python 34B 53.7 82.8 94.7
        PanGu-Coder2 15B 61.64 79.55 91.76""",
    "mbpp": """
        Llama 2 7B 20.8 41.8 65.5
        Code Llama 7B 41.4 66.7 82.5
        Code Llama 13B 47.0 71.7 87.1
        Code Llama 34B 55.0 76.2 86.6
        Code Llama 70B 62.4 81.1 91.9
        Code Llama Instruct 7B 44.4 65.4 76.8
        Code Llama Python 7B 47.6 70.3 84.8
        Code Llama Python 34B 56.2 76.4 88.2""",
    "mbpp_zero_shot": """
        Code Llama Instruct 7B 37.4
        Code Llama Instruct 13B 40.2""",
    "apps": """
        Code Llama 7B 10.8 15.6 33.5 2.0 3.1 9.4 0.8 1.4 7.1
        Code Llama 13B 23.7 30.2 49.0 5.6 8.1 18.4 2.1 3.4 12.0
        Code Llama 34B 32.8 39.0 56.3 8.8 12.2 24.3 2.9 4.7 15.4
        Code Llama Python 7B 12.7 18.5 38.3 4.2 6.3 14.9 1.3 2.2 9.1
        Code Llama Python 34B 28.9 35.9 54.9 7.8 11.1 23.9 3.5 5.5 16.8""",
    "apps_zero_shot": """
        Code Llama Instruct 7B 24.9 29.4 41.3 6.3 8.4 16.1 1.9 3.0 9.2
        Code Llama Instruct 13B 24.8 29.8 43.5 7.0 9.2 17.3 1.7 2.5 6.3
        Code Llama Instruct 34B 19.8 25.9 43.5 5.7 8.0 16.9 1.5 2.3 6.4""",
    "multipl_e": """
        CodeGeeX 13B 16.9 19.1 13.5 10.1 8.5 2.8
        Llama 2 7B 6.8 10.8 9.9 12.6 6.3 3.2
        Code Llama 7B 28.6 34.2 24.2 33.3 25.3 12.0
        Code Llama 13B 39.1 38.0 34.2 29.6 27.3 15.2
        Code Llama 34B 47.8 45.6 44.1 33.3 30.4 17.1
        Code Llama 70B 52.8 51.9 50.9 49.1 38.0 29.1
        Code Llama Python 7B 32.3 35.4 32.3 23.9 24.7 16.5
        Code Llama Python 34B 42.2 44.9 42.9 34.3 31.7 14.6""",
    "humaneval_x": """
        CodeGen-Multi 16B 19.22 34.64 55.17 18.05 30.84 50.90 14.95 36.73 60.62 18.40 32.80 56.48 13.03 25.46 48.77
        CodeGeeX 13B 22.89 39.57 60.92 17.06 32.21 51.00 20.04 36.70 58.42 17.59 32.28 56.33 14.43 25.68 47.14""",
    "humaneval_infilling": """
        Code Llama 7B PSM 74.1 48.2 59.7
        Code Llama 7B SPM 83.3 50.8 39.0
        Code Llama 13B PSM 75.9 51.0 63.6
        Code Llama 13B SPM 85.6 56.1 41.9""",
    "single_line": """
        Code Llama 7B PSM 67.6 74.3 80.2
        Code Llama 7B SPM 72.7 77.6 82.6
        Code Llama 13B PSM 68.3 77.6 80.7
        Code Llama 13B SPM 74.5 80.0 85.0""",
    "docstring": """
        Code Llama 7B 20.37
        Code Llama 13B 21.15""",
    "gsm8k": """
        Llama 2 7B 14.7
        Code Llama 7B 13.0
        Code Llama 13B 20.8
        Code Llama 34B 32.7
        Code Llama Python 7B 13.0
        Code Llama Python 34B 34.4""",
    "lcc": """
        Code Llama 7B 39.23 61.84 51.94 71.89 50.20 70.22
        Code Llama 13B 41.06 62.76 52.67 72.29 52.15 71.00
        Code Llama 34B 44.89 65.99 56.80 73.79 53.71 72.69""",
    "key_retrieval": """
        Code Llama 7B 100 95.3 100 54.7 100 98.4 3.1 85.9 85.9
        Code Llama 13B 100 100 100 100 100 100 100 89.1 6.3
        Code Llama 34B 76.6 100 100 95.3 96.9 100 81.3 0.0 81.3""",
}


def numbers(benchmark: str) -> dict[str, dict[str, float]]:
    """Returns what the papers measured on a benchmark, in percent: {model: {measure: value}}."""
    columns = COLUMNS.get(benchmark, ())
    split = [
        line.rsplit(maxsplit=len(columns))
        for line in ROWS.get(benchmark, "").split("\n")
        if line.strip()
    ]
    return {name.strip(): dict(zip(columns, map(float, values))) for name, *values in split}
