"""Networks, each a function that builds one for a data set's channels, size and classes.

To add one, write a module here, list its function below, and add ``conf/model/<name>.yaml``.
"""

from robustness_geometry.models.build import Factory, architectures, build, describe
from robustness_geometry.models.caffenet import caffenet
from robustness_geometry.models.checkpoint import load_weights, read_metadata, save_weights
from robustness_geometry.models.cnn import cnn
from robustness_geometry.models.custom import custom
from robustness_geometry.models.efficientnet_lite import efficientnet_lite
from robustness_geometry.models.fully_connected import fc500_150_10
from robustness_geometry.models.huggingface import huggingface
from robustness_geometry.models.lenet import lenet
from robustness_geometry.models.lenet5 import lenet5
from robustness_geometry.models.lenet_cifar import lenet_cifar
from robustness_geometry.models.nin import nin
from robustness_geometry.models.normalisation import Normalise, Normalised
from robustness_geometry.models.pretrained import pretrained, restore
from robustness_geometry.models.probabilities import LogProbabilities
from robustness_geometry.models.resnet18 import resnet18
from robustness_geometry.models.robustbench import robustbench
from robustness_geometry.models.timm_model import timm_model
from robustness_geometry.models.torchvision_model import torchvision_model
from robustness_geometry.models.vgg_f import vgg_f
from robustness_geometry.models.wrn28_10 import wrn28_10

__all__ = [
    "Factory",
    "LogProbabilities",
    "Normalise",
    "Normalised",
    "architectures",
    "build",
    "caffenet",
    "cnn",
    "custom",
    "describe",
    "efficientnet_lite",
    "fc500_150_10",
    "huggingface",
    "lenet",
    "lenet5",
    "lenet_cifar",
    "load_weights",
    "nin",
    "pretrained",
    "read_metadata",
    "resnet18",
    "restore",
    "robustbench",
    "save_weights",
    "timm_model",
    "torchvision_model",
    "vgg_f",
    "wrn28_10",
]
