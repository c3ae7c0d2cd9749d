"""What the README tells a newcomer is true."""

import re

import yaml


def test_every_file_and_preset_of_the_table_exists(root):
    text = (root / "README.md").read_text()
    for path in re.findall(
        r"`((?:stages|pipeline|conf|robustness_geometry|benchmarks)/[\w/.-]+)`", text
    ):
        assert (root / path).exists(), path
    for stage, preset in re.findall(r"python -m stages\.(\w+) experiment=(\w+)", text):
        config = yaml.safe_load((root / "conf" / "experiment" / f"{preset}.yaml").read_text())
        for name in config["experiments"]:
            assert (root / "stages" / stage.removesuffix("_transfer") / f"{name}.py").exists()


def test_every_suite_of_the_readme_exists(root):
    names = {path.stem for path in (root / "conf" / "suite").glob("*.yaml")}
    assert names == {
        "embedded",
        "smoke",
        "digits",
        "fashion",
        "photographs",
        "thesis",
        "imagenet",
    }
    assert all(f"`{name}`" in (root / "README.md").read_text() for name in names)
