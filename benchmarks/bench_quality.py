"""How good are the models, on real data, by the protocols of the project's targets? Settings are never chosen on test.

Each protocol is one function in a module of its own (`quality_*.py`): add it to PROTOCOLS.

    python benchmarks/bench_quality.py --only ml100k_top_n --json benchmarks/results/quality.json
"""

import time
from collections.abc import Callable, Mapping

import harness
import quality_ratings
import quality_top_n
from quality import Outcome

from ltrec_jax import parallel, storage
from ltrec_jax.parallel import describe_hardware

PROTOCOLS: Mapping[str, Callable[[bool], Outcome]] = {
    "ml100k_top_n": quality_top_n.movielens_100k,
    "ml1m_top_n": quality_top_n.movielens_1m,
    "mt_top_n": quality_top_n.movietweetings,
    "ml100k_ratings": quality_ratings.movielens_100k,
    "ml1m_ratings": quality_ratings.movielens_1m,
    "mt_ratings": quality_ratings.movietweetings,
}
"""Name -> function of `quick` (small: does it run at all)."""


def main() -> None:
    parser = harness.arguments(__doc__ or "")
    parser.add_argument("--only", nargs="+", choices=list(PROTOCOLS), help="protocols to run; default: all")
    options = parser.parse_args()
    # As every command does: a program is compiled once per machine.
    parallel.enable_compile_cache(str(storage.cache_directory() / "compiled"))
    before = storage.read_json(options.json) if options.json and options.json.is_file() else {}
    # Protocols that are not run again keep their figures, and what they were measured on and of.
    headline: dict[str, float] = dict(before.get("headline", {}))
    then = {"hardware": before.get("hardware"), "code": before.get("code")}
    details: dict[str, object] = {name: {"measured": then} | old for name, old in before.get("details", {}).items()}
    rows: list[tuple[str, str]] = []
    for name in options.only or PROTOCOLS:
        began = time.perf_counter()
        found = PROTOCOLS[name](options.quick)
        seconds = time.perf_counter() - began
        headline |= dict(found.headline) | {f"{name}_seconds": round(seconds, 1)}
        details[name] = {**found.details, "measured": {"hardware": describe_hardware(), "code": harness.code()}}
        rows += [*found.rows, (f"{name}: seconds", f"{seconds:.0f}")]
        harness.report(options.json, "quality", headline, details, rows)


if __name__ == "__main__":
    main()
