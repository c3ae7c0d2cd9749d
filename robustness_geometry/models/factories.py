"""The architectures of this package by name: what a weight file may ask to be built."""

from robustness_geometry.models.build import Factory
from robustness_geometry.models.caffenet import caffenet
from robustness_geometry.models.fully_connected import fc500_150_10
from robustness_geometry.models.lenet import lenet
from robustness_geometry.models.lenet5 import lenet5
from robustness_geometry.models.lenet_cifar import lenet_cifar
from robustness_geometry.models.nin import nin
from robustness_geometry.models.resnet18 import resnet18
from robustness_geometry.models.vgg_f import vgg_f
from robustness_geometry.models.wrn28_10 import wrn28_10

__all__ = ["FACTORIES"]

FACTORIES: dict[str, Factory] = {
    "caffenet": caffenet,
    "fc500_150_10": fc500_150_10,
    "lenet": lenet,
    "lenet5": lenet5,
    "lenet_cifar": lenet_cifar,
    "nin": nin,
    "resnet18": resnet18,
    "vgg_f": vgg_f,
    "wrn28_10": wrn28_10,
}
