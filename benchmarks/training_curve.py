"""How metrics grew over training, by wall time: a figure and a table out of the TensorBoard events of runs.

python benchmarks/training_curve.py runs/qm9_small_2h --metrics val/molecule/validity val/molecule/match_rate

Wall time is that of the machine the runs were made on, evaluations included; an interruption counts as if it had been
training.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unite.runs.headlines import tensorboard_tag

mpl.use("agg")
from matplotlib import pyplot as plt

Curve = list[tuple[int, float, float]]
"""Step, minutes since the first event, and value of each evaluation."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--metrics", nargs="+", required=True, help="names in metrics.csv")
    parser.add_argument("--log", nargs="*", default=[], help="those of the metrics whose axis is logarithmic")
    parser.add_argument("--output", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    curves = {run.name: read_curves(run, arguments.metrics) for run in arguments.runs}
    for run, found in curves.items():
        print(f"{run}\n\n{markdown(found)}\n")
    if arguments.output is not None:
        draw(curves, arguments.metrics, arguments.log, arguments.output)
        print(f"wrote {arguments.output}")


def read_curves(run: Path, metrics: list[str]) -> dict[str, Curve]:
    """The logged values of each metric of a run."""
    if not list(run.glob("events.*")):
        raise SystemExit(f"{run} is no run folder: it has no TensorBoard events")
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    known = events.Tags()["scalars"]
    tags = {
        metric: metric if metric in known else tensorboard_tag(metric) for metric in metrics
    }  # older runs have names
    missing = [metric for metric, tag in tags.items() if tag not in known]
    if missing:
        raise SystemExit(f"{run} has no {', '.join(missing)}; it has {', '.join(known)}")
    start = events.FirstEventTimestamp()
    return {
        metric: [(event.step, (event.wall_time - start) / 60, event.value) for event in events.Scalars(tag)]
        for metric, tag in tags.items()
    }


def markdown(curves: dict[str, Curve]) -> str:
    """Table with a row for each evaluation; metrics logged at other steps, as training losses are, are left out."""
    rarest = min(curves.values(), key=len)
    columns = {name: curve for name, curve in curves.items() if [row[0] for row in curve] == [row[0] for row in rarest]}
    lines = [f"| step | minutes | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for index, (step, minutes, _) in enumerate(rarest):
        values = " | ".join(f"{curve[index][2]:.4g}" for curve in columns.values())
        lines.append(f"| {step + 1:,} | {minutes:.0f} | {values} |")
    return "\n".join(lines)


def draw(curves: dict[str, dict[str, Curve]], metrics: list[str], logarithmic: list[str], path: Path) -> None:
    """One panel per metric, one line per run."""
    figure, panels = plt.subplots(1, len(metrics), figsize=(3.6 * len(metrics), 2.9), squeeze=False, layout="tight")
    for axes, metric in zip(panels[0], metrics, strict=True):
        for run, found in curves.items():
            rows = found[metric]
            is_dense = len(rows) > 40
            axes.plot([row[1] for row in rows], [row[2] for row in rows], "-" if is_dense else "o-", ms=3, label=run)
        axes.set_title(metric, fontsize=9)
        axes.set_xlabel("minutes")
        axes.set_xlim(left=0)
        if metric in logarithmic:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    if len(curves) > 1:
        panels[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
