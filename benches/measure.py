"""What one run of a command takes: seconds by the clock and of the CPU, and the peak of memory of all its processes."""

import os
import subprocess
import sys
import tempfile
import time

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS = 0.02


def measure(command, cores, environment=None):
    """Runs a command on these cores until it ends well; ends this program with what it said if it does not."""
    before = os.times()
    start = time.monotonic()
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, **(environment or {})}
        process = subprocess.Popen(["taskset", "-c", cores, *command], stdout=log, stderr=log, env=environment)
        peak, cpu_of = 0, {}
        while process.poll() is None:
            peak = max(peak, resident_bytes(process.pid, cpu_of))
            time.sleep(SAMPLE_SECONDS)
        seconds = time.monotonic() - start
        after = os.times()
        if process.returncode != 0:
            log.seek(0)
            said = log.read().decode(errors="replace")
            sys.exit(f"{' '.join(command)} failed with {process.returncode}:\n{said}")
    waited_for = after.children_user + after.children_system - before.children_user - before.children_system
    # Nobody may have waited for a process of a process; what it took is what it had taken when it was last seen.
    cpu = max(waited_for, sum(cpu_of.values()))
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak / (1 << 20)}


def resident_bytes(pid, cpu_of=None):
    """What a process and its children hold; one that has just ended holds nothing. Notes their CPU seconds too."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
            total = int(statm.read().split()[1]) * PAGE_BYTES
        if cpu_of is not None:
            with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
                user, system = stat.read().rsplit(") ", 1)[1].split()[11:13]
            cpu_of[pid] = (int(user) + int(system)) / TICKS
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as children:
                total += sum(resident_bytes(int(child), cpu_of) for child in children.read().split())
        return total
    except OSError:
        return 0


def text_of(command, environment=None):
    """What a command prints."""
    environment = {**os.environ, **(environment or {})}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if answer.returncode != 0:
        sys.exit(f"{' '.join(command)} failed with {answer.returncode}:\n{answer.stderr}")
    return answer.stdout.strip()


def machine(cores):
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else 'an unknown CPU'}, cores {cores}"
