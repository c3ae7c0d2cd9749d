"""The architectures of this package by name: what a weight file may ask to be built."""

from pipeline.models.build import Factory
from pipeline.models.caffenet import caffenet
from pipeline.models.fully_connected import fc500_150_10
from pipeline.models.lenet import lenet
from pipeline.models.lenet5 import lenet5
from pipeline.models.lenet_cifar import lenet_cifar
from pipeline.models.nin import nin
from pipeline.models.resnet18 import resnet18
from pipeline.models.vgg_f import vgg_f
from pipeline.models.wrn28_10 import wrn28_10

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
