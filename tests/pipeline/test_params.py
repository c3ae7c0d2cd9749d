from dvc.utils.hydra import compose_and_dump

from pipeline.params import composed, main


def test_params_yaml_is_what_conf_composes_to(root):
    assert (root / "params.yaml").read_text() == composed()
    assert main(["--check"]) == 0


def test_dvc_composes_the_same_bytes(root, tmp_path):
    compose_and_dump(str(tmp_path / "params.yaml"), str(root / "conf"), None, "base", "", [])
    assert (tmp_path / "params.yaml").read_text() == composed()


def test_an_override_reaches_the_text():
    assert "steps: 51" in composed(["attack.steps=51"])
    assert "steps: 51" not in composed()
