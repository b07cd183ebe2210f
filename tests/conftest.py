"""Eight CPU devices for every test, before JAX's backend starts; ranks must agree unless a test says otherwise."""

import collections

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update(
    "jax_disable_most_optimizations", True
)  # the tests compile far longer than they compute


def pytest_terminal_summary(terminalreporter):
    """Prints how many tests were skipped, by what they need, in one visible line."""
    reasons = collections.Counter()
    for report in terminalreporter.stats.get("skipped", []):
        _, _, reason = report.longrepr
        reasons[reason.removeprefix("Skipped: ")] += 1
    if reasons:
        counts = "; ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))
        terminalreporter.write_line(f"skipped: {counts}", yellow=True)
