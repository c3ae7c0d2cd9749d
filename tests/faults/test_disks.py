"""Disks that are full, read-only, or that hold damaged files."""

import shutil

import pytest
from conftest import TRAINED, command, forget, one_line, remount, repro, results, stage

STORES = {
    "executor.work": "finished work",
    "output": "metrics, tables and figures",
    "tracking.uri": "MLflow's rows and files",
    "hydra.run.dir": "Hydra's folder and log",
}


def place_of(key, disk):
    return f"{key}=sqlite:///{disk}/mlflow.db" if key == "tracking.uri" else f"{key}={disk}/inside"


@pytest.mark.parametrize("key", STORES)
def test_a_full_disk_is_one_line_and_costs_nothing(tmp_path, small_disk, identical, tried, key):
    disk = small_disk("disk", 16384)
    override = place_of(key, disk)
    ended = stage(tmp_path, "attack", override)
    if ended.code == 0:
        assert key == "hydra.run.dir"  # it is so small that it fits
        assert "Traceback" not in ended.errors
        tried(f"a disk of 16 KiB for {STORES[key]}", "it sufficed")
        return
    line = one_line(ended)
    assert key == "tracking.uri" or not (disk / "inside" / "metrics.json").exists()
    remount(disk, "size=64m")
    if key == "output":
        assert stage(tmp_path, "attack", override).code == 0
        shutil.copytree(disk / "inside", tmp_path / "results")
    elif key == "tracking.uri":
        assert stage(tmp_path, "attack", override).code == 0
    identical(tmp_path, "attack")
    tried(f"a full disk for {STORES[key]} (16 KiB)", f"exit code {ended.code}: {line}")


@pytest.mark.parametrize("key", STORES)
def test_a_disk_that_became_read_only_is_one_line(tmp_path, small_disk, identical, tried, key):
    disk = small_disk("disk", 2**26)
    override = place_of(key, disk)
    remount(disk, "ro")
    line = one_line(stage(tmp_path, "attack", override), key)
    identical(tmp_path, "attack")
    tried(f"a read-only folder for {STORES[key]}", f"one line: {line}")


def harmed(path, how):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes({"flip": content, "cut": content[: len(content) // 2], "empty": b""}[how])


@pytest.mark.parametrize("how", ["flip", "cut", "empty"])
@pytest.mark.parametrize("name", ["attack", "universal"])
def test_damaged_chunks_are_computed_again(tmp_path, undisturbed, identical, tried, name, how):
    shutil.copytree(undisturbed(name)[0] / "work", tmp_path / "work")
    for path in sorted((tmp_path / "work").rglob("*.bin"))[::2]:
        harmed(path, how)
    said = identical(tmp_path, name).errors
    assert "is damaged: computing it again" in said
    tried(f"every other chunk of {name} damaged ({how})", "computed again, results identical")


@pytest.mark.parametrize("how", ["flip", "cut", "empty"])
def test_a_damaged_checkpoint_starts_its_training_anew(
    tmp_path, undisturbed, identical, tried, how
):
    shutil.copytree(undisturbed("train")[0] / "work", tmp_path / "work")
    for path in (tmp_path / "work").rglob("*.bin"):
        path.unlink()
    for path in (tmp_path / "work" / "checkpoints").glob("*.pt"):
        harmed(path, how)
    said = identical(tmp_path, "train").errors
    assert "is damaged: its training starts anew" in said
    tried(f"the checkpoint of a training damaged ({how})", "trained anew, results identical")


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_damaged_database_is_one_line_and_stays(tmp_path, identical, tried, how):
    override = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    assert stage(tmp_path, "attack", override).code == 0
    database = tmp_path / "mlflow.db"
    content = bytearray(database.read_bytes())
    content[4096:40960] = bytes(36864) if how == "flip" else b""
    database.write_bytes(content)
    for log in tmp_path.glob("mlflow.db-*"):
        log.unlink()
    ended = stage(tmp_path, "attack", override)
    line = one_line(ended, "mlflow.db", "move the damaged file away")
    assert database.read_bytes() == content
    database.rename(tmp_path / "away")
    identical(tmp_path, "attack", override)
    tried(f"mlflow.db damaged ({how})", f"exit code {ended.code}: {line}")


@pytest.mark.parametrize("name", ["params.yaml", "dvc.lock"])
@pytest.mark.parametrize("how", ["garbage", "cut", "empty"])
def test_a_damaged_file_of_dvc_costs_nothing(repository, tried, name, how):
    place, expected, _ = repository
    if not (place / "dvc.lock").exists():
        forget(place)
        repro(place)
    content = (place / name).read_bytes()
    half = content[: len(content) // 2]
    (place / name).write_bytes({"garbage": b"\0\xff\xfe[", "cut": half, "empty": b""}[how])
    ended = repro(place)
    said = [line for line in ended.errors.splitlines() if "ERROR" in line or "failed" in line]
    (place / name).write_bytes(content)
    again = repro(place)
    assert "Traceback" not in ended.errors + again.errors, ended.errors + again.errors
    assert again.code == 0, again.errors
    assert results(place / TRAINED) == expected
    said += ended.errors.splitlines()
    tried(f"{name}: {how}", said[0] if ended.code else "run again, results identical")


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_damaged_tensors_of_an_earlier_stage_are_noticed(repository, tried, how):
    place, expected, _ = repository
    if results(place / TRAINED) != expected:
        forget(place)
        repro(place)
    harmed(place / TRAINED / "tensors" / "seed0.safetensors", how)
    words = ("network=mnist5k_lenet", "experiments=[attack_l2]", "tracking=none", "suite=smoke")
    words += (f"hydra.run.dir={place}/outputs/direct",)
    direct = command("python", "-m", "stages.attack", *words, place=place)
    assert "Traceback" not in direct.errors, direct.errors
    assert direct.code == 2
    assert "dvc checkout" in direct.errors
    assert repro(place).code == 0
    assert results(place / TRAINED) == expected
    tried(f"weights of the stage train damaged ({how})", direct.errors.splitlines()[-1])
