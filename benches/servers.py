"""Servers of one run, on free ports of loopback: PostgreSQL from the system, and the emulators of AWS from `make test-env`."""

import glob
import os
import shutil
import signal
import socket
import subprocess
import time

from measure import text_of

HERE = os.path.dirname(os.path.abspath(__file__))
TESTS = os.path.join(HERE, "..", "tests", "servers")
REGION = "us-west-2"
START_SECONDS = 30


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def share_priority(pid):
    """Gives a server, which has a session of its own, the priority that this session was given among others."""
    try:
        with open("/proc/self/autogroup", encoding="ascii") as own:
            nice = own.read().split()[-1]
        with open(f"/proc/{pid}/autogroup", "w", encoding="ascii") as its:
            its.write(nice)
    except OSError:
        # A kernel without autogroups, or a user who may not.
        pass


class Postgres:
    """A durable PostgreSQL (fsync is on) in a folder of its own, which does not run as root."""

    def __init__(self, folder, cores=None, settings=()):
        self.bin = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
        self.data = os.path.join(folder, "postgres")
        self.owner = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self.owner:
            shutil.chown(folder, "postgres", "postgres")
            os.chmod(folder, 0o755)
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable"
        self.run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")
        given = ["listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", *settings]
        flags = " ".join([f"-p {self.port}", *(f"-c {setting}" for setting in given)])
        pinned = ["taskset", "-c", cores] if cores else []
        log = os.path.join(folder, "postgres.log")
        self.run("pg_ctl", "-D", self.data, "-w", "-l", log, "-o", flags, "start", before=pinned)
        with open(os.path.join(self.data, "postmaster.pid"), encoding="ascii") as running:
            share_priority(int(running.readline()))

    def run(self, program, *arguments, before=()):
        command = [*before, *self.owner, os.path.join(self.bin, program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    def ask(self, sql):
        return text_of(["psql", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-c", sql, self.url])

    def stop(self):
        self.run("pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop")


class Emulators:
    """S3 with SQS (ministack), and Kinesis (kinesis-local)."""

    def __init__(self, test_env, folder, cores=None):
        self.python = os.path.join(test_env, "python", "bin", "python")
        if not os.path.exists(self.python):
            raise SystemExit(f"there are no emulators in {test_env}: `make test-env` puts them there")
        pinned = ["taskset", "-c", cores] if cores else []
        aws, kinesis = free_port(), free_port()
        program = os.path.join(test_env, "node", "node_modules", "kinesis-local")
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{aws}",
            "AWS_ENDPOINT_URL_KINESIS": f"http://127.0.0.1:{kinesis}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.servers = []
        self.start(
            [*pinned, os.path.join(test_env, "python", "bin", "ministack")],
            {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(aws)},
            folder,
            aws,
        )
        self.start(
            [*pinned, "node", "-r", os.path.join(TESTS, "loopback.js"), os.path.join(program, "main.js")],
            {
                "KINESIS_MOCK_PLAIN_PORT": str(kinesis),
                "KINESIS_MOCK_TLS_PORT": str(free_port()),
                "KINESIS_MOCK_CERT_PATH": os.path.join(program, "server.json"),
                "LOG_LEVEL": "WARN",
            },
            folder,
            kinesis,
        )

    def start(self, command, environment, folder, port):
        with open(os.path.join(folder, "servers.log"), "ab") as log:
            environment = {**os.environ, **environment}
            process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
        share_priority(process.pid)
        self.servers.append(process)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            with socket.socket() as connection:
                if connection.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.05)
        self.stop()
        raise SystemExit(f"{command[-1]} does not listen; see {folder}/servers.log")

    def aws(self, *arguments):
        """What `tests/servers/aws.py` answers."""
        return text_of([self.python, os.path.join(TESTS, "aws.py"), *arguments], self.environment)

    def stop(self):
        for server in self.servers:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()
