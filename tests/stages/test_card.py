"""The card through its real command line."""

import json
import subprocess
import sys

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
