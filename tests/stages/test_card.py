"""The card through its real command line."""

import json
import subprocess
import sys

import numpy as np
import pytest

SMALL = ["budget=smoke", "tracking=none", "executor.progress=false", "executor.workers=1"]


def made(root, folder, *arguments):
    words = [sys.executable, "-m", "stages.card", *arguments, *SMALL, f"output={folder}"]
    words += [f"executor.work={folder}/work", f"hydra.run.dir={folder}/run"]
    return subprocess.run(words, cwd=root, capture_output=True, text=True, timeout=500)


@pytest.mark.smoke
def test_a_card_of_a_described_network(root, tmp_path):
    done = made(root, tmp_path, "model=fc500_150_10", "dataset=mnist5k", "seeds=[0,1]")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("card.html")
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["network"], card["classes"], card["seeds"]) == ("mnist5k_fc500_150_10", 10, [0, 1])
    assert card["parameters"] == 469_160
    for key in ("rho_2", "rho_inf", "universal_fooling", "beta_16", "share_negative_closest"):
        assert key in card["numbers"], card["missing"]
    assert 0 < card["numbers"]["seed_agreement"]["value"] <= 1
    assert "<img" in (tmp_path / "card.html").read_text()


def test_what_does_not_suit_the_data_is_noted(root, tmp_path):
    """Twelve inputs have no subspace of a sixty-fourth of their dimensions."""
    labels = np.arange(80) % 2
    inputs = np.random.default_rng(0).random((80, 12), dtype=np.float32) / 2 + labels[:, None] / 2
    arrays = {"x_train": inputs[:40], "x_test": inputs[40:].astype(np.float32)}
    np.savez(tmp_path / "table.npz", **arrays, y_train=labels[:40], y_test=labels[40:])
    table = ["model=fc500_150_10", "dataset=arrays", f"dataset.path={tmp_path / 'table.npz'}"]
    ratios = "settings.beta_semirandom.ratios=[32,64]"
    done = made(root, tmp_path, *table, ratios, "experiments=[attack_linf,beta_semirandom]")
    assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "card.json").read_text())
    assert "rho_inf" in card["numbers"]
    assert card["missing"]["beta_64"].startswith("Not measured: settings.beta_semirandom.ratios")
    alone = made(root, tmp_path, *table, ratios, "experiments=[beta_semirandom]")
    assert alone.returncode == 2
    assert "settings.beta_semirandom.ratios must be" in alone.stderr


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("experiments=[cure_cifar10]", "experiments must be some of attack_l2"),
        ("cure.samples=3", "cure.samples is not used, as the card takes experiments of attack"),
        (
            "settings.watermark.samples=3",
            "settings.watermark.samples is not used, as the card takes attack_l2",
        ),
        ("detect.sample=3", "detect.sample is no key"),
    ],
)
def test_what_the_card_does_not_use_is_refused(root, tmp_path, argument, said):
    done = made(root, tmp_path, "network=mnist5k_lenet", argument)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert said in line
