"""Recorded bench reports, ``papermill_runs/bench/*.json``, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from collapse_lib.cost.bench import BENCHES, CONFIGS, IN_BF16, OURS, in_words
from collapse_lib.cost.calibration import is_recorded_machine
from collapse_lib.experiment.files import read_json
from collapse_lib.experiment.paths import runs_root
from collapse_lib.experiment.shapes import BenchReport

if TYPE_CHECKING:
    from pandas import DataFrame

Report = dict[str, Any]


def recorded(folder: str = "bench") -> list[Report]:
    """Every report in a folder of ``papermill_runs``, by device, bench and size of the model."""
    files = sorted(file for file in (runs_root() / folder).glob("*.json") if not is_recorded_machine(file))
    reports = [read_json(file, BenchReport, "delete it, or let `collapse bench` write it again") for file in files]
    return sorted(reports, key=lambda report: (report["device"], BENCHES.index(report["bench"]), list(CONFIGS).index(report["config"])))


def rates(reports: list[Report]) -> DataFrame:
    """A row for each side of each report: units a second, how often ours of its precision is as fast (median, least, most of the rounds), memory."""
    from pandas import DataFrame

    rows = []
    for report in reports:
        for name, side in report["sides"].items():
            ratio = report["ratios"].get(name)
            rows.append(
                {
                    "bench": f"{report['bench']}, {report['config']}",
                    "side": name,
                    f"{report['unit']}/s": f"{side['rate']:,.0f}",
                    "ours is faster by": in_words(ratio) if ratio else "",
                    "peak memory, MiB": f"{side['peak_memory_bytes'] / 2**20:,.0f}",
                    "device": report["device"],
                    "date": report["date"][:10],
                }
            )
    return DataFrame(rows)


def gains(reports: list[Report]) -> DataFrame:
    """A row for each report of a CPU with units for bf16: what ours gains by them."""
    from pandas import DataFrame

    rows = [
        {
            "bench": f"{report['bench']}, {report['config']}",
            f"fp32, {report['unit']}/s": f"{report['sides'][OURS]['rate']:,.0f}",
            f"bf16, {report['unit']}/s": f"{report['sides'][OURS + IN_BF16]['rate']:,.0f}",
            "bf16 is faster by": in_words(report["bf16_gain"]),
            "device": report["device"],
        }
        for report in reports
        if "bf16_gain" in report
    ]
    return DataFrame(rows)


def limits(reports: list[Report]) -> DataFrame:
    """A row for each hardware limit of each report, with the share of it that ours reaches."""
    from pandas import DataFrame

    rows = [
        {
            "bench": f"{report['bench']}, {report['config']}",
            "limit": limit["name"],
            "measured in the same run": limit["measured"],
            f"that allows, {report['unit']}/s": f"{limit['limit_rate']:,.0f}",
            f"ours, {report['unit']}/s": f"{report['sides'][OURS]['rate']:,.0f}",
            "share": f"{limit['share']:.0%}",
            "device": report["device"],
        }
        for report in reports
        for limit in report.get("floors", [])
    ]
    return DataFrame(rows)


def checks(reports: list[Report]) -> DataFrame:
    """A row for each comparison of what the sides computed."""
    from pandas import DataFrame

    rows = [
        {"bench": f"{report['bench']}, {report['config']}", "compared": check["what"], "same": "yes" if check["passed"] else "NO"}
        for report in reports
        for check in report["checks"]
    ]
    return DataFrame(rows)
