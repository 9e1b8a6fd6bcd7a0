"""The real NVIDIA Triton Inference Server without docker: installed from a wheel, started on loopback, stopped again.

The wheel of nvidia-pytriton holds the server itself (2.51) with its Python backend. ONNX Runtime's backend is not in
it; a backend in Python takes its name, so that the server's core loads the same ``config.pbtxt`` that it loads in
production, and ONNX Runtime runs the graphs on the processor.

It has an environment of its own, ``.venv/triton``: its Python backend gives empty answers with NumPy 2.

    python benchmarks/triton_server.py --install
    python benchmarks/triton_server.py REPOSITORY [--port 8000]     # until Ctrl-C
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SERVER_VERSION", "Server", "install", "installed", "running_server", "unsupported"]

SERVER_VERSION = "2.51.0"
ENVIRONMENT = Path(__file__).resolve().parent.parent / ".venv" / "triton"
_WHEEL, _NUMPY = "nvidia-pytriton==0.7.0", "numpy==1.26.4"
_SAME = ("onnxruntime", "pillow")  # versions as here, so that answers can be compared bit by bit
_BACKEND = Path(__file__).with_name("triton_onnxruntime_backend.py")
_DONE = "installed.txt"


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: of HTTP, without a path.
        grpc: host and port of gRPC.
        metrics: URL of the Prometheus page.
        log: what it writes.
        process: the server.
    """

    url: str
    grpc: str
    metrics: str
    log: Path
    process: subprocess.Popen[bytes]


def unsupported() -> str | None:
    """Why this machine cannot have the server; None if it can."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return f"the server's wheel is for Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    if not (3, 11) <= sys.version_info < (3, 13):
        return "the server's Python backend needs NumPy 1, which has wheels up to Python 3.12"
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split("."))) < (2, 35):
        return f"the server's wheel needs glibc 2.35, this is {library or 'another library'} {version}"
    return None


def wanted() -> list[str]:
    """What is installed, as pip takes it."""
    return [_NUMPY, *(f"{name}=={importlib.metadata.version(name)}" for name in _SAME)]


def installed(environment: Path = ENVIRONMENT) -> bool:
    """The environment is there and complete."""
    return _read(environment / _DONE).split() == [_WHEEL, *wanted()] and _read(
        environment / "backends" / "onnxruntime" / "model.py"
    ) == _read(_BACKEND)


def install(environment: Path = ENVIRONMENT) -> None:
    """Make the environment, unless it is complete."""
    if installed(environment):
        return
    venv.create(environment, clear=True, with_pip=True)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *wanted()], check=True)
    subprocess.run([*pip, "--no-deps", _WHEEL], check=True)  # its own dependencies are a framework's around the server
    backends = environment / "backends"
    python, onnxruntime = backends / "python", backends / "onnxruntime"
    for folder in (python, onnxruntime):
        folder.mkdir(parents=True)
    files, version = _files(environment), f"{sys.version_info.major}.{sys.version_info.minor}"
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy(files / "backends" / "python" / name, python)  # no links: they would leave the backend's folder
    stub = "triton_python_backend_stub"
    (python / stub).symlink_to(
        files / "python_backend_stubs" / version / stub
    )  # no copy: it finds libraries from there
    shutil.copy(_BACKEND, onnxruntime / "model.py")
    (environment / _DONE).write_text("\n".join([_WHEEL, *wanted()]))


@contextlib.contextmanager
def running_server(
    repository: Path,
    log: Path,
    *,
    arguments: Sequence[str] = (),
    environment: Path = ENVIRONMENT,
    port: int | None = None,
    seconds: float = 120,
) -> Iterator[Server]:
    """Start the server on loopback, wait until all its models are ready, and stop it afterwards.

    Args:
        repository: model repository.
        log: file for what it says.
        arguments: more of the server's own arguments.
        environment: where it is installed.
        port: of HTTP; the next two are gRPC's and the metrics'. None takes free ones.
        seconds: how long it may take to become ready.

    Raises:
        RuntimeError: it does not become ready; the message ends with the log's last lines.
    """
    ports = _free_ports(3) if port is None else [port, port + 1, port + 2]
    files = _files(environment)
    command = [
        str(files / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={environment / 'backends'}",
        f"--cache-directory={files / 'caches'}",
        *(f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")),
        *(f"--{name}-port={one}" for name, one in zip(("http", "grpc", "metrics"), ports, strict=True)),
        *arguments,
    ]
    if setpriv := shutil.which("setpriv"):  # whatever becomes of this process, the server does not outlive it
        command = [setpriv, "--pdeathsig", "TERM", "--", *command]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=_variables(environment))
    server = Server(
        f"http://127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", f"http://127.0.0.1:{ports[2]}/metrics", log, process
    )
    try:
        _wait_until_ready(server, seconds)
        yield server
    finally:
        _stop(process)


def _read(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


def _files(environment: Path) -> Path:
    return _packages(environment) / "pytriton" / "tritonserver"


def _packages(environment: Path) -> Path:
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _variables(environment: Path) -> dict[str, str]:
    """The server embeds Python: its interpreter, packages and libraries are those of the environment."""
    import sysconfig

    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    paths = [sysconfig.get_config_var("LIBDIR"), kept.get("LD_LIBRARY_PATH")]
    return {
        **kept,
        "PATH": f"{environment / 'bin'}:{kept.get('PATH', '')}",
        "PYTHONPATH": str(_packages(environment)),
        "LD_LIBRARY_PATH": ":".join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
    }


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_until_ready(server: Server, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if server.process.poll() is not None:
            break
        with (
            contextlib.suppress(urllib.error.URLError, OSError),
            urllib.request.urlopen(f"{server.url}/v2/health/ready", timeout=5) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.1)
    said = server.log.read_text(errors="replace").splitlines()
    raise RuntimeError("the server did not become ready:\n" + "\n".join(said[-40:]))


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", nargs="?", type=Path)
    parser.add_argument("--install", action="store_true", help="install the server, unless it is there")
    parser.add_argument("--environment", type=Path, default=ENVIRONMENT)
    parser.add_argument("--port", type=int, default=8000)
    chosen = parser.parse_args()
    if reason := unsupported():
        print(f"NVIDIA Triton Inference Server is not installed, and its tests are skipped: {reason}")
        return
    if chosen.install:
        install(chosen.environment)
    if chosen.repository:
        log = Path("triton.log")
        with running_server(chosen.repository, log, environment=chosen.environment, port=chosen.port) as server:
            print(f"ready on {server.url}, gRPC on {server.grpc}; log: {log}", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                server.process.wait()


if __name__ == "__main__":
    main()
