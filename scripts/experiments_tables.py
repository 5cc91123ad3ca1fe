#!/usr/bin/env python3
"""Tables of what scripts/bench-experiments.sh left, as Markdown.

usage: experiments_tables.py FOLDER [NAME...]     NAME: a stage, or the beginning of a result's name

A table of replays has, for each policy, percentiles of the time to first token over all seeds (ms, with
95 % bootstrap intervals over requests), their mean and deviation over seeds, hit and stale rate, and the
load: tokens computed over what the engines could have computed from the first request to the last answer.
Below it, the default policy against every other one: the ratio of each percentile by seed, its mean
and standard error. It loses where that mean is over 1.03 and either over 1 by Student's t (one side, 5 %)
or the two 95 % intervals over all requests have nothing in common.
"""
import json
import math
import pathlib
import statistics
import sys

OURS = "prefix-aware"
QUANTILES = ("p50", "p95", "p99", "mean")
# Student's t, 95 %, one side, by the number of seeds; of one seed nothing can be said.
STUDENT = {2: 6.31, 3: 2.92, 4: 2.35, 5: 2.13, 6: 2.02, 7: 1.94, 8: 1.89}


def cells(results):
    """(point, policies with their pooled figures and runs), in order of the points."""
    points = []
    for pooled in results["pooled"]:
        if pooled["point"] not in points:
            points.append(pooled["point"])
    for point in points:
        rows = []
        for pooled in results["pooled"]:
            if pooled["point"] == point:
                runs = [
                    run
                    for run in results["runs"]
                    if run["policy"] == pooled["policy"] and run["point"] == point
                ]
                rows.append((pooled, runs))
        yield point, rows


def load(results, runs):
    """Share of what the engines could have computed that they did."""
    settings = results["settings"]
    speeds = settings["engines"] - 1 + settings["slow_worker"]
    could = sum(run["elapsed_s"] for run in runs) * speeds * settings["prefill_tokens_per_s"]
    return sum(worker["prefilled_tokens"] for run in runs for worker in run["workers"]) / could


def percent(share):
    return "-" if share is None else f"{100 * share:.1f}"


def interval(figure):
    return f"{figure['value']:.0f} [{figure['low']:.0f}, {figure['high']:.0f}]"


def over_seeds(runs, quantile):
    values = [run["ttft_ms"][quantile] for run in runs]
    spread = f" ± {statistics.stdev(values):.0f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.0f}{spread}"


def replay_table(results, rows):
    lines = [
        "| policy | p50 [95 %] | p95 [95 %] | p99 | p50 of seeds | p95 of seeds | hit % | stale % "
        "| busiest: requests, prefill | load | failed |",
        "| --- |" + " --- |" * 10,
    ]
    for pooled, runs in rows:
        ttft = pooled["ttft_ms"]
        busiest = ", ".join(
            f"{statistics.mean(run[key] for run in runs):.2f}"
            for key in ("requests_max_to_mean", "prefill_max_to_mean")
        )
        lines.append(
            f"| {pooled['policy']} | {interval(ttft['p50'])} | {interval(ttft['p95'])} "
            f"| {ttft['p99']['value']:.0f} | {over_seeds(runs, 'p50')} | {over_seeds(runs, 'p95')} "
            f"| {percent(pooled['hit_rate'] and pooled['hit_rate']['value'])} "
            f"| {percent(pooled['stale_rate'])} | {busiest} | {load(results, runs):.2f} "
            f"| {pooled['errors']} of {pooled['requests']} |"
        )
    return lines


def compared(ours, other, quantile):
    """Mean ratio by seed, its standard error, and whether that is a loss; each is (pooled, runs)."""
    by_seed = {run["seed"]: run["ttft_ms"][quantile] for run in ours[1]}
    ratios = [
        by_seed[run["seed"]] / run["ttft_ms"][quantile]
        for run in other[1]
        if run["seed"] in by_seed
    ]
    mean, seeds = statistics.mean(ratios), len(ratios)
    error = statistics.stdev(ratios) / math.sqrt(seeds) if seeds > 1 else 0.0
    is_sure = seeds > 1 and mean - 1 > STUDENT.get(seeds, 1.86) * error
    if quantile in ours[0]["ttft_ms"]:
        mine, its = ours[0]["ttft_ms"][quantile], other[0]["ttft_ms"][quantile]
        is_sure = is_sure or mine["low"] > its["high"]
    return mean, error, mean > 1.03 and is_sure


def against(rows):
    """The default policy to each other one."""
    ours = next((row for row in rows if row[0]["policy"] == OURS), None)
    if ours is None or len(rows) < 2:
        return []
    lines = [f"| {OURS} / | " + " | ".join(QUANTILES) + " |", "| --- |" + " --- |" * len(QUANTILES)]
    for row in rows:
        if row is ours:
            continue
        shown = []
        for quantile in QUANTILES:
            mean, error, loses = compared(ours, row, quantile)
            text = f"{mean:.2f} ± {error:.2f}"
            shown.append(f"**{text} loses**" if loses else text)
        lines.append(f"| {row[0]['policy']} | " + " | ".join(shown) + " |")
    return lines


def slopes(points):
    """What a percentile gains with each unit swept, least squares, by policy."""
    lines = ["| policy | p50 a unit (r²) | p95 (r²) | p99 (r²) |", "| --- | --- | --- | --- |"]
    policies = [pooled["policy"] for pooled, _ in points[0][1]]
    for policy in policies:
        shown = []
        for quantile in QUANTILES[:3]:
            found = [
                (point["value"], pooled["ttft_ms"][quantile]["value"])
                for point, rows in points
                for pooled, _ in rows
                if pooled["policy"] == policy
            ]
            x, y = zip(*found)
            slope, _ = statistics.linear_regression(x, y)
            shown.append(f"{slope:.1f} ms ({statistics.correlation(x, y) ** 2:.2f})")
        lines.append(f"| {policy} | " + " | ".join(shown) + " |")
    return lines


def show_replay(name, results):
    print(f"\n### {name}\n")
    for point, rows in cells(results):
        if point:
            print(f"\n{point['name']} = {point['value']:g}\n")
        print("\n".join(replay_table(results, rows)))
        ratios = against(rows)
        if ratios:
            print("\n" + "\n".join(ratios))


def merged_sweep(folder):
    """A sweep that was played in parts is one: points in order."""
    parts = [json.loads(path.read_text()) for path in sorted(folder.glob("sweep-*/results.json"))]
    if not parts:
        return None
    whole = parts[0]
    for part in parts[1:]:
        whole["runs"] += part["runs"]
        whole["pooled"] += part["pooled"]
    whole["pooled"].sort(key=lambda pooled: pooled["point"]["value"])
    return whole


def show_simulated(name, results):
    print(f"\n### {name} (virtual time)\n")
    print("| engine | cache | load | policy | p50 s | p95 s | p99 s | hit % | stale % | busiest |")
    print("| --- |" + " --- |" * 9)
    for cell in results["cells"]:
        for policy in cell["policies"]:
            mean = policy["mean"]["value"] if "value" in policy["mean"] else policy["mean"]
            print(
                f"| {cell['engine']} | {cell['cache_tokens']} | {cell['load']} | {policy['policy']} "
                f"| {mean['p50']:.3g} | {mean['p95']:.3g} | {mean['p99']:.3g} "
                f"| {percent(mean['hit'])} | {percent(mean['stale'])} | {mean['busiest']:.2f} |"
            )


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    wanted = tuple(sys.argv[2:]) or ("",)
    sweep = merged_sweep(folder)
    if sweep and any("sweep".startswith(name) for name in wanted):
        (folder / "sweep.json").write_text(json.dumps(sweep))
        show_replay("sweep", sweep)
        print("\n" + "\n".join(slopes(list(cells(sweep)))))
    for path in sorted(folder.glob("*/results.json")):
        name = path.parent.name
        if name.startswith(wanted) and not name.startswith("sweep-"):
            show_replay(name, json.loads(path.read_text()))
    for path in sorted(folder.glob("*.json")):
        if path.stem.startswith(wanted) and path.stem != "sweep":
            show_simulated(path.stem, json.loads(path.read_text()))


if __name__ == "__main__":
    main()
