"""Runs a server for as long as whoever started this holds standard input open.

However a test ends (well, by a panic, by kill -9), its end of the pipe closes, and the server ends with it.

    keep.py [--user NAME] [--folder FOLDER] SIGNAL COMMAND...

SIGNAL (TERM, QUIT) goes to the server's process group, and KILL two seconds later. FOLDER is removed at the end.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--user")
    parser.add_argument("--folder")
    parser.add_argument("signal")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()

    # Signals to the tests' process group (Ctrl-C) must not end the keeper before it has ended the server.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = subprocess.Popen(
        args.command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        user=args.user,
        group=args.user,
        extra_groups=[] if args.user else None,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    ending = threading.Event()
    threading.Thread(target=exit_with, args=(server, ending), daemon=True).start()
    sys.stdin.buffer.read()
    ending.set()
    end(server, signal.Signals["SIG" + args.signal])
    if args.folder:
        shutil.rmtree(args.folder, ignore_errors=True)
    os._exit(0)


def exit_with(server, ending):
    """Tells the tests if the server ends by itself."""
    server.wait()
    if not ending.is_set():
        os._exit(1)


def end(server, first):
    for number, patience in ((first, 2), (signal.SIGKILL, 5)):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            return
        try:
            server.wait(patience)
            return
        except subprocess.TimeoutExpired:
            pass


main()
