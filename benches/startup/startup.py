#!/usr/bin/env python3
"""How soon `nexus run` reads, what an idle pipeline takes, and how large the program is: `make startup`.

    startup.py --nexus target/release/nexus [--rounds 20] [--seconds 30]

The first read is when the system tells (inotify) that the only file of the source is read; from the start of the process
to there the pipeline file is parsed, checked and planned, the state is looked for and claimed. The size is that of the
program without symbols. Linux; Python's standard library and `strip`.
"""

import argparse
import ctypes
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from measure import resident_bytes  # noqa: E402

ROWS = 1000
SETTLE_SECONDS = 5
IN_ACCESS = 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nexus", required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=30)
    options = parser.parse_args()
    nexus = os.path.abspath(options.nexus)
    with tempfile.TemporaryDirectory(prefix="nexus-startup-") as folder:
        path = os.path.join(folder, "readings.jsonl")
        with open(path, "w", encoding="utf-8") as out:
            for seq in range(ROWS):
                ts = f"2026-11-01T00:{seq // 60:02}:{seq % 60:02}Z"
                out.write(f'{{"seq":{seq},"ts":"{ts}","site":"reno","temp_c":{seq % 40}}}\n')
        first, whole = zip(*(start(nexus, path, os.path.join(folder, f"lake-{n}")) for n in range(options.rounds)))
        print(f"from the start to the first read: median {ms(first)}, most {max(first) * 1000:.0f} ms")
        print(f"a run of {ROWS} rows through three tiers, from start to exit: median {ms(whole)}")
        cpu, resident = idle(nexus, path, os.path.join(folder, "lake-idle"), options.seconds)
        print(f"idle for {options.seconds} s: {100 * cpu / options.seconds:.2f} % of a core, {resident / (1 << 20):.0f} MiB resident")
        stripped = os.path.join(folder, "nexus")
        subprocess.run(["strip", "-o", stripped, nexus], check=True)
        print(f"the program without symbols: {os.path.getsize(stripped) / 1e6:.0f} MB")


def ms(seconds):
    return f"{statistics.median(seconds) * 1000:.0f} ms"


def command(nexus, path, lake, follow):
    settings = {"readings": path, "follow": follow, "lake": lake}
    pairs = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    return [nexus, "run", os.path.join(HERE, "startup.yaml"), *pairs]


def start(nexus, path, lake):
    """Seconds from the start of a run to its first read, and to its end."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init()
    assert watch >= 0 and libc.inotify_add_watch(watch, path.encode(), IN_ACCESS) >= 0, os.strerror(ctypes.get_errno())
    begun = time.monotonic()
    with subprocess.Popen(command(nexus, path, lake, "false"), stdout=subprocess.DEVNULL) as process:
        ready, _, _ = select.select([watch], [], [], 30)
        first = time.monotonic() - begun
        assert process.wait() == 0, "the run failed"
    whole = time.monotonic() - begun
    os.close(watch)
    assert ready, "the file was not read"
    return first, whole


def idle(nexus, path, lake, seconds):
    """CPU seconds and memory of a run that has read all there is."""
    with subprocess.Popen(command(nexus, path, lake, "true"), stdout=subprocess.DEVNULL) as process:
        time.sleep(SETTLE_SECONDS)
        before = cpu_seconds(process.pid)
        time.sleep(seconds)
        taken, resident = cpu_seconds(process.pid) - before, resident_bytes(process.pid)
        process.terminate()
        assert process.wait() == 0, "the run failed"
    return taken, resident


def cpu_seconds(pid):
    """What a process has taken, by the scheduler's count in nanoseconds, all its threads together."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as schedstat:
            total += int(schedstat.read().split()[0])
    return total / 1e9


if __name__ == "__main__":
    main()
