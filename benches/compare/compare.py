#!/usr/bin/env python3
"""Nexus and its peers on the same work, in one run: `make compare`.

    compare.py --folder target/compare --nexus target/release/nexus [--work w1|w1z|w2|w3|w4|w5|growth] [--rows N]
               [--rounds N] [--peers duckdb,polars,datafusion,spark,flink,pathway] [--cores 0,1]

Makes the data, installs the peers into `<folder>/venv*`, runs each and Nexus in turn for so many rounds, pinned to the
same cores, checks that all have the same answers, and prints medians, ratios and the peak of memory. Results go to
`<folder>/results-<work>.json` and, as a picture, to `<folder>/results-<work>.svg`. Python's standard library alone.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import venv

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

import growth  # noqa: E402
import make_departures  # noqa: E402
import nexmark  # noqa: E402
import picture  # noqa: E402
import streams  # noqa: E402
import works  # noqa: E402
from measure import machine, measure, text_of  # noqa: E402
from works import PEERS  # noqa: E402

WORKS = {
    "w1": works.Telemetry,
    "w1z": works.Zipped,
    "w2": works.Departures,
    "w3": streams.IntoPostgres,
    "w4": streams.FromEmulators,
    "w5": nexmark.Nexmark,
    "growth": growth.Growth,
}


def main():
    options = arguments()
    folder = os.path.abspath(options.folder)
    os.makedirs(folder, exist_ok=True)
    kind = WORKS[options.work]
    versions = install(folder, [peer for peer in options.peers if peer in kind.peers])
    versions["Nexus"] = text_of([options.nexus, "--version"]).split()[-1]
    work = kind(options, folder)
    try:
        work.make()
        runs, answers = take_turns(work, folder, options)
        for group, told in answers.items():
            works.same(told, work.answers)
            print(f"all {len(told)} have the same answers{' to ' + group if group else ''}")
    finally:
        work.close()
        shutil.rmtree(os.path.join(folder, "out"), ignore_errors=True)
    report(options, folder, work, runs, versions)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--nexus", required=True)
    parser.add_argument("--work", choices=list(WORKS), default="w1")
    parser.add_argument("--rows", type=int, help="rows of the input; each work has its own default")
    parser.add_argument("--times", type=int, default=10, help="growth: how many times the rows the larger input has")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", type=lambda names: [n for n in names.split(",") if n], default=list(PEERS))
    parser.add_argument("--queries", type=lambda names: names.split(","), help="w5: only these, such as q0,q5")
    parser.add_argument("--departures", default=make_departures.SHIPPED, help="w2: where flights-2013-*.csv.gz lie")
    parser.add_argument("--test-env", default=os.environ.get("NEXUS_TEST_ENV"), help="w4: where `make test-env` has put the emulators")
    parser.add_argument("--cores", default="0,1")
    options = parser.parse_args()
    unknown = set(options.peers) - set(PEERS)
    if unknown:
        parser.error(f"unknown peers {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    options.nexus = os.path.abspath(options.nexus)
    return options


def install(folder, peers):
    """Puts the peers into virtual environments, and gives their versions by their names. DuckDB is there in any case: it
    compares the answers."""
    versions = {}
    wanted = {"duckdb", *peers}
    for home in sorted({PEERS[peer][2] for peer in wanted}):
        here = {PEERS[peer][1]: PEERS[peer][0] for peer in wanted if PEERS[peer][2] == home}
        python = works.python_of(folder, home)
        if not os.path.exists(python):
            venv.create(os.path.join(folder, home), with_pip=True)
        known = subprocess.run([python, "-m", "pip", "show", "-q", *here], capture_output=True)
        if known.returncode != 0:
            subprocess.run([python, "-m", "pip", "install", "-q", *sorted(here)], check=True)
        shown = json.loads(text_of([python, "-m", "pip", "list", "--format", "json"]))
        versions |= {here[package["name"].lower()]: package["version"] for package in shown if package["name"].lower() in here}
    return versions


def take_turns(work, folder, options):
    """Runs all in turn, round by round, and reads the answers of the first round. A name may have a group before a `:`,
    whose answers alone are compared."""
    contestants = list(work.contestants())
    runs = {contestant.name: [] for contestant in contestants}
    answers = {}
    for number in range(options.rounds):
        for contestant in contestants:
            out = os.path.join(folder, "out", "lake")
            shutil.rmtree(out, ignore_errors=True)
            os.makedirs(out)
            if contestant.before:
                contestant.before()
            run = measure(contestant.command(out), options.cores, contestant.environment)
            run["seconds"] -= contestant.idle_seconds
            runs[contestant.name].append(run)
            print(f"round {number + 1}, {contestant.name}: {run['seconds']:.2f} s, {run['peak_mib']:.0f} MiB", flush=True)
            if number == 0:
                group = contestant.name.rpartition(": ")[0]
                answers.setdefault(group, {})[contestant.name] = work.answer(out, contestant.name)
    return runs, answers


def report(options, folder, work, runs, versions):
    rows = []
    for name, taken in runs.items():
        group, _, who = name.rpartition(": ")
        rows.append({
            "group": group,
            "name": who,
            "version": versions.get(who, ""),
            "seconds": round(statistics.median(run["seconds"] for run in taken), 2),
            "cpu_seconds": round(statistics.median(run["cpu_seconds"] for run in taken), 2),
            "peak_mib": round(max(run["peak_mib"] for run in taken)),
        })  # fmt: skip
    for row in rows:
        others = [other["seconds"] for other in rows if other["group"] == row["group"] and not other["name"].startswith("Nexus")]
        row["rows_per_second"] = round(work.rows_of(row["group"]) / row["seconds"])
        row["to_fastest_peer"] = round(row["seconds"] / min(others), 2) if others else None
    results = {
        "work": options.work, "title": work.title, "row_count": work.rows, "bytes": work.bytes, "rounds": options.rounds,
        "machine": machine(options.cores), "rows": rows,
    }  # fmt: skip
    with open(os.path.join(folder, f"results-{options.work}.json"), "w", encoding="utf-8") as out:
        json.dump(results, out, indent=2)
    print(f"\n{options.work}: {work.rows} rows, {work.bytes / 1e9:.2f} GB, {options.rounds} rounds, {results['machine']}\n")
    for line in work.table(results):
        print(line)
    if work.title:
        picture.draw(results, os.path.join(folder, f"results-{options.work}.svg"))


if __name__ == "__main__":
    main()
