"""Export the weights of the embedded suite as those that come with the library.

They are those of the first training seed; `make weights` runs this module.
"""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from robustness_geometry.models import build, describe, load_weights, save_weights
from robustness_geometry.models.pretrained import WEIGHTS
from stages.config import factory, read, ready

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Write the package's weight files from the results of the stage train."""
    config = read(DictConfig(OmegaConf.load(ROOT / "params.yaml")))
    for name, network in config.networks.items():
        data = ready(network.dataset, f"networks.{name}.dataset")()
        make = factory(network.model, f"networks.{name}.model")
        model = build(make, data, config.seeds[0])
        trained = ROOT / "results" / config.suite.name / "train" / name / "tensors"
        load_weights(model, trained / f"seed{config.seeds[0]}.safetensors")
        save_weights(
            model,
            WEIGHTS / f"{name}.safetensors",
            describe(make, data),
        )


if __name__ == "__main__":
    main()
