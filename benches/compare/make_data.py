#!/usr/bin/env python3
"""Makes the events of workload W1: `make_data.py FOLDER [EVENTS] [FILES]`.

5 million JSON events of 12 fields in 20 files by default, about 245 bytes a line. The same arguments give the same
bytes: each file has a seed of its own. Python's standard library alone; a file takes some five seconds on one core.
"""

import gzip
import multiprocessing
import os
import random
import sys

SITES = ["bend", "boise", "elko", "ely", "fresno", "reno", "tahoe", "yuma"]
FIRMWARE = ["2.3.9", "2.4.0", "2.4.1", "2.5.0-rc1"]
START_MS = 1_793_491_200_000  # 2026-11-01T00:00:00Z
STEP_MS = 2
JITTER_MS = 3_000


def time_text(ms):
    """RFC 3339 with milliseconds. All events lie in November 2026, so that days are counted by hand."""
    seconds, ms = divmod(ms - START_MS, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return "2026-11-%02dT%02d:%02d:%02d.%03dZ" % (days + 1, hours, minutes, seconds, ms)


def make_file(job):
    path, seed, first, events = job
    if os.path.exists(path):
        return
    draw = random.Random(seed)
    uniform, below = draw.random, draw.randrange
    with open(path + ".part", "w", encoding="utf-8", newline="\n", buffering=1 << 20) as out:
        for seq in range(first, first + events):
            late = int(uniform() * JITTER_MS)
            chance = uniform()
            status = "ok" if chance < 0.9 else "warn" if chance < 0.96 else "error"
            out.write(
                '{"event_id":"%08x-%04x-4a51-%08x","device_id":"device-%05d","site":"%s","ts":"%s","seq":%d,'
                '"temp_c":%.2f,"humidity":%.1f,"battery_v":%.3f,"status":"%s","firmware":"%s",'
                '"lat":%.5f,"lon":%.5f}\n'
                % (
                    below(1 << 32),
                    seq & 0xFFFF,
                    below(1 << 32),
                    below(20_000),
                    SITES[below(8)],
                    time_text(START_MS + JITTER_MS + seq * STEP_MS - late),
                    seq,
                    uniform() * 55 - 10,
                    uniform() * 100,
                    uniform() * 4,
                    status,
                    FIRMWARE[below(4)],
                    33 + uniform() * 12,
                    -123 + uniform() * 12,
                )
            )
    os.rename(path + ".part", path)


def zip_file(path):
    if os.path.exists(path + ".gz"):
        return
    with open(path, "rb") as plain, open(path + ".gz.part", "wb") as out:
        with gzip.GzipFile(filename="", mode="wb", fileobj=out, compresslevel=6, mtime=0) as zipped:
            while chunk := plain.read(1 << 20):
                zipped.write(chunk)
    os.rename(path + ".gz.part", path + ".gz")


def make(folder, events=5_000_000, files=20, zipped=False):
    """Makes what is not there yet, and returns the paths."""
    os.makedirs(folder, exist_ok=True)
    each = events // files
    paths = [os.path.join(folder, f"events-{number:03}.jsonl") for number in range(files)]
    with multiprocessing.Pool() as pool:
        pool.map(make_file, [(path, 7000 + n, n * each, each) for n, path in enumerate(paths)], chunksize=1)
        if zipped:
            pool.map(zip_file, paths, chunksize=1)
    return paths


if __name__ == "__main__":
    arguments = sys.argv[1:]
    made = make(arguments[0], *(int(argument) for argument in arguments[1:3]))
    print(f"{len(made)} files, {sum(os.path.getsize(path) for path in made)} bytes")
