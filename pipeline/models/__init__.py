"""Networks, each a function that builds for a data set's channels, size and classes; pixels in [0, 1]."""

from pipeline.models.build import Factory, build, describe
from pipeline.models.caffenet import caffenet
from pipeline.models.checkpoint import load_weights, read_metadata, save_weights
from pipeline.models.custom import custom
from pipeline.models.fully_connected import fc500_150_10
from pipeline.models.lenet import lenet
from pipeline.models.lenet5 import lenet5
from pipeline.models.lenet_cifar import lenet_cifar
from pipeline.models.nin import nin
from pipeline.models.normalisation import Normalise, Normalised
from pipeline.models.pretrained import pretrained, restore
from pipeline.models.resnet18 import resnet18
from pipeline.models.timm_model import timm_model
from pipeline.models.torchvision_model import torchvision_model
from pipeline.models.vgg_f import vgg_f
from pipeline.models.wrn28_10 import wrn28_10

__all__ = [
    "Factory",
    "Normalise",
    "Normalised",
    "build",
    "caffenet",
    "custom",
    "describe",
    "fc500_150_10",
    "lenet",
    "lenet5",
    "lenet_cifar",
    "load_weights",
    "nin",
    "pretrained",
    "read_metadata",
    "resnet18",
    "restore",
    "save_weights",
    "timm_model",
    "torchvision_model",
    "vgg_f",
    "wrn28_10",
]
