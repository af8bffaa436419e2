import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from ltrec_jax.train.fit import fit


@pytest.fixture(scope="session")
def run_directory(small_split, small_config, tmp_path_factory):
    """A finished run on the small dataset: users u0..u119, items i0..i89, i80.. never rated."""
    config = dataclasses.replace(small_config, train=dataclasses.replace(small_config.train, epochs=0, head_epochs=30))
    run = tmp_path_factory.mktemp("serve") / "run"
    fit(small_split, config, run)
    return run


@pytest.fixture(scope="session")
def bundle(run_directory):
    """Its model, as it is loaded for serving."""
    from ltrec_jax.bundle import Bundle

    return Bundle.load(run_directory / "bundle")


@pytest.fixture
def service(bundle):
    from ltrec_jax.serve.service import Service

    service = Service(bundle)
    yield service
    service.close()


class Server:
    """`ltrec serve` as a process of its own."""

    def __init__(self, run, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "ltrec_jax.cli",
            "serve",
            str(run),
            "--port",
            str(self.port),
            "--log",
            str(log),
        ]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(1200):
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}")
            with contextlib.suppress(OSError):
                if self.ask("GET", "/v1/ready")[0] == 200:
                    return
            time.sleep(0.05)
        raise RuntimeError("the server was not ready in a minute")

    def ask(self, method, path, body=None):
        """(status, answer) of one request."""
        request = urllib.request.Request(
            self.address + path,
            None if body is None else json.dumps(body).encode(),
            {"content-type": "application/json"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def stop(self, how=signal.SIGTERM):
        """End it, and give its exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, how)
        return self.process.wait(timeout=30)


@pytest.fixture
def start_server(run_directory, tmp_path):
    """A function that starts servers of the run on one log; what still runs at the end is killed."""
    servers = []

    def start():
        servers.append(Server(run_directory, tmp_path / "log.sqlite"))
        return servers[-1]

    yield start
    for server in servers:
        server.stop(signal.SIGKILL)
