"""What a machine that misbehaves raises, in one sentence with what to do."""

import errno
import os
import sqlite3
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from pipeline.crew import Crew
from pipeline.executor import Executor
from pipeline.faults import fault
from pipeline.storage import Chunk, drop_damaged, flatten, read, rebuild, write
from robustness_geometry.checks import InputError
from robustness_geometry.files import whole


def caused(error, cause):
    error.__cause__ = cause
    return error


SYSTEM = {
    errno.ENOSPC: "a/b: the disk is full. Delete results or finished chunks",
    errno.EDQUOT: "a/b: the disk is full. Delete results or finished chunks",
    errno.EROFS: "a/b: Read-only file system. Make it accessible, or choose another place",
    errno.EACCES: "a/b: Permission denied. Make it accessible, or choose another place",
    errno.EIO: "a/b: Input/output error. Check the disk and its connection",
    errno.EMFILE: "a/b: Too many open files. Raise the limit",
    errno.ENOMEM: "out of memory. Close other programs or raise the limit",
    errno.EAGAIN: "a/b: Resource temporarily unavailable. No more processes can be started",
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("number", SYSTEM)
def test_an_error_of_the_system_is_a_sentence(number, wrapped):
    error = OSError(number, os.strerror(number), "a/b")
    said = fault(caused(RuntimeError("of a library"), error) if wrapped else error)
    assert said is not None
    assert said.startswith(SYSTEM[number])
    assert said.endswith("run again: finished work is taken up")
    assert "\n" not in said


OTHERS = [
    (MemoryError(), "out of memory"),
    (np._core._exceptions._ArrayMemoryError((9,), np.dtype("f8")), "out of memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), "out of memory"),
    (torch.OutOfMemoryError("CUDA out of memory."), "out of memory"),
    (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "out of memory"),
    (RuntimeError("can't start new thread"), "no more threads can be started"),
    (sqlite3.OperationalError("database or disk is full"), "the disk is full"),
    (ValueError("I/O error: No space left on device (os error 28)"), "the disk is full"),
    (sqlite3.DatabaseError("database disk image is malformed"), "the tracking database is damaged"),
    (sqlite3.DatabaseError("file is not a database"), "the tracking database is damaged"),
    (sqlite3.OperationalError("attempt to write a readonly database"), "the tracking database can"),
    (sqlite3.OperationalError("database is locked"), "the tracking database cannot be used"),
]


@pytest.mark.parametrize(("error", "words"), OTHERS, ids=lambda value: str(value)[:30])
def test_errors_of_libraries_are_sentences(error, words):
    assert fault(error).startswith(words)
    assert fault(caused(ValueError("of MLflow"), error)).startswith(words)


def test_an_error_of_the_program_keeps_its_trace():
    unsupported = RuntimeError("could not create a primitive descriptor for a convolution")
    assert fault(unsupported) is None
    for error in (ValueError("x"), RuntimeError("shapes differ"), FileNotFoundError(2, "no", "a")):
        assert fault(error) is None
    probed = KeyError("x")
    probed.__context__ = PermissionError(errno.EACCES, "probing", "a")
    assert fault(probed) is None


def test_without_memory_for_the_libraries_a_stage_ends_in_one_line(root):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29))"
    start = "import sys; sys.argv = ['x']; from stages.start import main; main('attack')"
    done = subprocess.run(
        [sys.executable, "-c", f"{limit}; {start}"],
        cwd=root,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("attack: out of memory. ")
    assert len(done.stderr.splitlines()) == 1


def saved(path):
    with whole(path) as file:
        torch.save({"weight": torch.arange(100.0)}, file)
    return path


@pytest.mark.parametrize("harm", ["flip", "cut", "empty"])
@pytest.mark.parametrize("which", [".pt", ".epoch1.pt"])
def test_a_damaged_checkpoint_is_removed_with_its_epochs_and_others_stay(tmp_path, harm, which):
    ours = [saved(tmp_path / f"aa-bb{end}") for end in (".pt", ".epoch1.pt", ".epoch2.pt")]
    other = saved(tmp_path / "aa-cc.pt")
    path = tmp_path / f"aa-bb{which}"
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(100.0).numpy().tobytes()) + 9] ^= 4
    path.write_bytes({"flip": content, "cut": content[:-30], "empty": b""}[harm])
    assert drop_damaged(tmp_path) == [path]
    assert not any(each.exists() for each in ours)
    assert drop_damaged(tmp_path) == []
    assert other.exists()
    assert drop_damaged(tmp_path / "nowhere") == []


def test_torch_writes_checksums_into_its_archives(tmp_path):
    with zipfile.ZipFile(saved(tmp_path / "net.pt")) as archive:
        assert all(entry.CRC for entry in archive.infolist() if entry.file_size)


def test_work_is_done_where_no_more_processes_can_be_forked(tmp_path, monkeypatch):
    crew = Crew(4)

    def refused(*_):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(crew, "_started", refused)
    done = []
    crew.share(5, done.append)
    crew.share(5, done.append)
    assert done == [0, 1, 2, 3, 4] * 2


def starved(images):
    raise MemoryError


def test_on_a_cpu_memory_that_does_not_suffice_changes_no_chunk(tmp_path):
    executor = Executor(accelerator="cpu", work=tmp_path, progress=False)
    with pytest.raises(MemoryError):
        executor.map(starved, torch.zeros(4, 1))
    assert not list(tmp_path.rglob("*.bin"))


def test_a_chunk_that_names_no_dataclass_calls_nothing(tmp_path):
    path = tmp_path / "chunk.bin"
    parts = {"kind": "dataclass", "name": "builtins:print", "parts": {"end": "0"}}
    write(path, Chunk(flatten(torch.zeros(1)).tensors, parts))
    with pytest.raises(TypeError, match="names builtins:print, which is no dataclass"):
        rebuild(read(path))


def test_a_full_disk_that_was_named_keeps_its_sentence(tmp_path):
    from pipeline.storage import refuse_full_disk

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(InputError) as caught,
        refuse_full_disk(tmp_path / "outer"),
        refuse_full_disk(tmp_path / "inner"),
    ):
        raise full
    assert str(caught.value).startswith(f"{tmp_path / 'inner'} must be on a disk with free space")
