#!/usr/bin/env python3
"""Nexus and its peers on the same work, in one run: `make compare`.

    compare.py --folder target/compare --nexus target/release/nexus [--work w1|w1z] [--events N] [--rounds N]
               [--peers duckdb,polars,datafusion,spark] [--cores 0,1]

Makes the data, installs the peers into `<folder>/venv`, runs each and Nexus in turn for so many rounds, pinned to the
same cores, checks that all have the same answers, and prints medians, ratios and the peak of memory. Results go to
`<folder>/results-<work>.json` and, as a picture, to `<folder>/results-<work>.svg`. Python's standard library alone.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv

import make_data

HERE = os.path.dirname(os.path.abspath(__file__))
PEERS = {
    "duckdb": ("DuckDB", "duckdb", "duckdb_batch.py"),
    "polars": ("Polars", "polars", "polars_batch.py"),
    "datafusion": ("DataFusion", "datafusion", "datafusion_batch.py"),
    "spark": ("Spark Structured Streaming", "pyspark", "spark_streams.py"),
}
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SAMPLE_SECONDS = 0.02


def main():
    options = arguments()
    folder = os.path.abspath(options.folder)
    data = os.path.join(folder, f"data-{options.events}")
    made = make_data.make(data, options.events, zipped=options.work == "w1z")
    suffix = ".jsonl.gz" if options.work == "w1z" else ".jsonl"
    inputs = os.path.join(folder, f"inputs-{options.events}-{options.work}")
    link_all([path.removesuffix(".jsonl") + suffix for path in made], inputs)
    events = os.path.join(inputs, "*" + suffix)

    python, versions = install(folder, options.peers)
    versions["Nexus"] = text_of([options.nexus, "--version"]).split()[-1]
    works = {"Nexus": [options.nexus, "run", os.path.join(HERE, "telemetry.yaml"), "--set", f"events={events}"]}
    for peer in options.peers:
        name, _, script = PEERS[peer]
        works[name] = [python, os.path.join(HERE, "peers", script), events]

    runs = {name: [] for name in works}
    answers = {}
    for number in range(options.rounds):
        for name, command in works.items():
            out = os.path.join(folder, "out", name.split()[0].lower())
            shutil.rmtree(out, ignore_errors=True)
            os.makedirs(out)
            to = ["--set", f"lake={out}"] if name == "Nexus" else [out]
            run = measure(command + to, options.cores)
            runs[name].append(run)
            print(f"round {number + 1}, {name}: {run['seconds']:.2f} s, {run['peak_mib']:.0f} MiB", flush=True)
            if number == 0:
                answers[name] = answer(python, out, name)
    check(answers)
    size = sum(os.path.getsize(path) for path in made)
    report(options, folder, runs, versions, size)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--nexus", required=True)
    parser.add_argument("--work", choices=["w1", "w1z"], default="w1")
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", type=lambda names: [n for n in names.split(",") if n], default=list(PEERS))
    parser.add_argument("--cores", default="0,1")
    options = parser.parse_args()
    unknown = set(options.peers) - set(PEERS)
    if unknown:
        parser.error(f"unknown peers {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    options.nexus = os.path.abspath(options.nexus)
    return options


def link_all(paths, folder):
    """A folder of exactly these files, for peers that take a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    for path in paths:
        os.link(path, os.path.join(folder, os.path.basename(path)))


def install(folder, peers):
    """Puts the peers into a virtual environment; the answers are compared by DuckDB in any case."""
    home = os.path.join(folder, "venv")
    python = os.path.join(home, "bin", "python")
    if not os.path.exists(python):
        venv.create(home, with_pip=True)
    packages = sorted({"duckdb"} | {PEERS[peer][1] for peer in peers})
    known = subprocess.run([python, "-m", "pip", "show", "-q", *packages], capture_output=True)
    if known.returncode != 0:
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    shown = text_of([python, "-m", "pip", "list", "--format", "json"])
    version_of = {package["name"].lower(): package["version"] for package in json.loads(shown)}
    return python, {PEERS[peer][0]: version_of[PEERS[peer][1]] for peer in peers}


def measure(command, cores):
    """Runs a command on these cores: seconds by the clock and of the CPU, and the peak of memory of all its processes."""
    before = os.times()
    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(["taskset", "-c", cores, *command], stdout=log, stderr=log)
        peak = 0
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid))
            time.sleep(SAMPLE_SECONDS)
        seconds = time.monotonic() - start
        after = os.times()
        if process.returncode != 0:
            log.seek(0)
            said = log.read().decode(errors="replace")
            sys.exit(f"{' '.join(command)} failed with {process.returncode}:\n{said}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak / (1 << 20)}


def resident_bytes(pid):
    """What a process and its children hold; one that has just ended holds nothing."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
            total = int(statm.read().split()[1]) * PAGE_BYTES
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as children:
                total += sum(resident_bytes(int(child)) for child in children.read().split())
        return total
    except OSError:
        return 0


def answer(python, out, name):
    """What a run has stored, as the same few numbers for all: of gold every row, of the others counts and sums."""
    tables = {}
    for tier, table in [("bronze", "events"), ("silver", "events"), ("gold", "site_minutes")]:
        places = [f"{out}/{tier}/{table}", f"{out}/{tier}", f"{out}/{tier}.parquet"]
        place = next(place for place in places if os.path.exists(place))
        tables[tier] = place if place.endswith(".parquet") else f"{place}/*.parquet"
    sql = f"""
        SET TimeZone = 'UTC';
        SELECT (SELECT to_json(b) FROM (
                  SELECT count(*) AS rows, sum(seq)::BIGINT AS seq, count(DISTINCT event_id) AS ids,
                         round(sum(temp_c), 2) AS temp_c, min(ts)::TIMESTAMPTZ::VARCHAR AS first, max(ts)::TIMESTAMPTZ::VARCHAR AS last
                  FROM '{tables["bronze"]}') b),
               (SELECT to_json(s) FROM (
                  SELECT count(*) AS rows, sum(seq)::BIGINT AS seq, round(sum(temp_f), 2) AS temp_f,
                         round(sum(lat), 2) AS lat
                  FROM '{tables["silver"]}') s),
               (SELECT to_json(list(g ORDER BY minute, site)) FROM (
                  SELECT minute::TIMESTAMPTZ::VARCHAR AS minute, site, events, round(mean_temp_c, 6) AS mean_temp_c,
                         min_temp_c, max_temp_c, round(mean_humidity, 6) AS mean_humidity
                  FROM '{tables["gold"]}') g)
    """
    script = "import duckdb, sys; print(*duckdb.connect().execute(sys.argv[1]).fetchone(), sep='\\n')"
    return text_of([python, "-c", script, sql]).splitlines()


def check(answers):
    names = list(answers)
    for name in names[1:]:
        for tier, ours, theirs in zip(["bronze", "silver", "gold"], answers[names[0]], answers[name]):
            if json.loads(ours) != json.loads(theirs):
                sys.exit(f"{tier} differs: {names[0]} has {ours[:400]}\n{name} has {theirs[:400]}")
    print(f"all {len(names)} have the same answers")


def report(options, folder, runs, versions, size):
    medians = {name: statistics.median(run["seconds"] for run in runs[name]) for name in runs}
    best = min((median for name, median in medians.items() if name != "Nexus"), default=None)
    rows = []
    for name, median in sorted(medians.items(), key=lambda pair: pair[1]):
        rows.append({
            "name": name,
            "version": versions[name],
            "seconds": round(median, 2),
            "cpu_seconds": round(statistics.median(run["cpu_seconds"] for run in runs[name]), 2),
            "rows_per_second": round(options.events / median),
            "mb_per_second": round(size / median / 1e6),
            "peak_mib": round(max(run["peak_mib"] for run in runs[name])),
            "to_fastest_peer": round(median / best, 2) if best else None,
        })  # fmt: skip
    cpu = next(
        (line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo", encoding="utf-8") if line.startswith("model name")),
        platform.processor(),
    )
    results = {
        "work": options.work, "events": options.events, "bytes": size, "rounds": options.rounds,
        "machine": f"{cpu}, cores {options.cores}", "rows": rows,
    }  # fmt: skip
    with open(os.path.join(folder, f"results-{options.work}.json"), "w", encoding="utf-8") as out:
        json.dump(results, out, indent=2)
    print(f"\n{options.work}: {options.events} events, {size / 1e9:.2f} GB, {options.rounds} rounds, {results['machine']}\n")
    print("| | version | s | CPU s | million rows/s | MB/s | peak MiB | time to the fastest peer's |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['name']} | {row['version']} | {row['seconds']:.2f} | {row['cpu_seconds']:.1f} "
            f"| {row['rows_per_second'] / 1e6:.2f} | {row['mb_per_second']} | {row['peak_mib']} | {row['to_fastest_peer']} |"
        )
    draw(results, os.path.join(folder, f"results-{options.work}.svg"))


def draw(results, path):
    """Bars of rows a second, as an SVG that is readable on light and dark ground."""
    rows = results["rows"]
    most = max(row["rows_per_second"] for row in rows)
    bar, gap, left, width = 26, 10, 210, 720
    lines = []
    for number, row in enumerate(rows):
        y = 34 + number * (bar + gap)
        length = max(2, round((width - left - 150) * row["rows_per_second"] / most))
        colour = "#d9622b" if row["name"] == "Nexus" else "#8a94a6"
        lines.append(f'<text x="{left - 10}" y="{y + 18}" text-anchor="end">{row["name"]} {row["version"]}</text>')
        lines.append(f'<rect x="{left}" y="{y}" width="{length}" height="{bar}" rx="3" fill="{colour}"/>')
        lines.append(f'<text x="{left + length + 8}" y="{y + 18}">{row["rows_per_second"] / 1e6:.2f} M, {row["peak_mib"]} MiB</text>')
    height = 44 + len(rows) * (bar + gap)
    title = f"{results['work'].upper()}: rows a second from JSON to three stored tiers, two cores; peak of memory"
    with open(path, "w", encoding="utf-8") as out:
        out.write(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
            "<style>text{font:13px sans-serif;fill:#444}@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>"
            f'<text x="0" y="16">{title}</text>{"".join(lines)}</svg>\n'
        )


def text_of(command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
