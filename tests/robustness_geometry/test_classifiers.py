"""Kinds of networks and functions: the numbers of the plain network, or a refusal in one line."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from robustness_geometry import check_classifier
from robustness_geometry.attacks import deepfool, fgsm, universal_perturbation
from robustness_geometry.checks import InputError, check_model
from robustness_geometry.detection import curvature_score
from robustness_geometry.geometry import boundary_points, mean_curvature, principal_curvatures
from robustness_geometry.memory import channels_last
from robustness_geometry.models import LogProbabilities, lenet
from robustness_geometry.training import cure_penalty

Named = namedtuple("Named", "features logits")


@dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor


def plain():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(64, 3))
    network[3].weight.data -= network[3].weight.data.mean(dim=0)
    network[3].bias.data.zero_()
    return network.eval()


class Around(nn.Module):
    """The plain network with a function before it and another one behind it."""

    def __init__(self, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.network, self.before, self.after = plain(), before, after
        self.eval()

    def forward(self, x):
        return self.after(self.network(self.before(x)))


class Checkpointed(Around):
    reentrant = False

    def forward(self, x):
        return checkpoint(self.network, x, use_reentrant=self.reentrant)


class Reentrant(Checkpointed):
    reentrant = True


class Unrecorded(Around):
    @torch.no_grad()
    def forward(self, x):
        return self.network(x)


class Inference(Around):
    @torch.inference_mode()
    def forward(self, x):
        return self.network(x)


class BatchMode(Around):
    def forward(self, x):
        return self.network(nn.functional.batch_norm(x, None, None, training=True))


class Viewing(Around):
    def forward(self, x):
        return self.network[3](self.network[1](self.network[0](x)).view(len(x), -1))


class Hidden(torch.autograd.Function):
    """z + z^3 whose gradient has no gradient of its own."""

    @staticmethod
    def forward(ctx, z):
        ctx.z = z.detach()
        return z + z**3

    @staticmethod
    def backward(ctx, gradient):
        return (1 + 3 * ctx.z**2) * gradient


def images(count=4):
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def exported(batch=None):
    sizes = None if batch else ({0: torch.export.Dim("n", min=1)},)
    return torch.export.export(plain(), (images(batch or 4),), dynamic_shapes=sizes).module()


def compiled_in_place():
    network = plain()
    network.compile(backend="aot_eager")
    return network


def hooked():
    network = plain()
    network[0].register_forward_hook(lambda layer, given, output: output * 1)
    return network


SAME = {
    "compiled": lambda: torch.compile(plain(), backend="aot_eager"),
    "compiled in place": compiled_in_place,
    "exported": exported,
    "scripted": lambda: torch.jit.script(plain()),
    "traced": lambda: torch.jit.trace(plain(), images()),
    "parallel": lambda: nn.DataParallel(plain()).eval(),
    "frozen weights": lambda: plain().requires_grad_(False),
    "hooked": hooked,
    "tuple": lambda: Around(after=lambda z: (z, z.mean())),
    "list": lambda: Around(after=lambda z: [z]),
    "named tuple": lambda: Around(after=lambda z: Named(z.exp(), z)),
    "dictionary": lambda: Around(after=lambda z: {"aux": z * 2, "logits": z}),
    "dataclass": lambda: Around(after=lambda z: Output(None, z)),
    "log-softmax": lambda: Around(after=lambda z: z.log_softmax(1)),
    "softmax": lambda: LogProbabilities(Around(after=lambda z: z.softmax(1))),
    "view": Viewing,
}
FIRST = {**SAME, "checkpointed": Checkpointed}

LOST = "model must be a network without no_grad"
PROBABILITIES = "model.output must be logits"
REFUSED = {
    "no_grad": (Unrecorded, LOST),
    "inference_mode": (Inference, LOST),
    "detach": (lambda: Around(after=torch.Tensor.detach), LOST),
    ".data": (lambda: Around(before=lambda x: x.data), LOST),
    "NumPy": (lambda: Around(before=lambda x: torch.from_numpy(x.detach().numpy())), LOST),
    "softmax": (lambda: Around(after=lambda z: z.softmax(1)), PROBABILITIES),
    "sigmoid": (lambda: Around(after=lambda z: z[:, :1].sigmoid()), PROBABILITIES),
    "in place": (lambda: Around(before=lambda x: x.mul_(2)), "model must be .* leaves its images"),
    "reentrant": (Reentrant, "use_reentrant=False"),
    "exported for one image": (lambda: exported(1), "batches of any size.*Dim"),
    "two outputs": (lambda: Around(after=lambda z: (z, z)), "model.output must be a tensor"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)).eval(), "must be initialised"),
}
FOUND = {
    "round": (lambda: Around(before=torch.round), "gradient of exactly zero at 3 of 3"),
    "constant": (lambda: Around(after=lambda z: z * 0 + 1), "same logits for 5 different images"),
    "dropout": (lambda: Around(before=nn.Dropout(0.3).train().forward), "same answer twice"),
    "noise": (lambda: Around(before=lambda x: x + 1e-3 * torch.randn_like(x)), "answer twice"),
    "batch mode": (BatchMode, "treats every image by itself"),
    "mean over the batch": (
        lambda: Around(before=lambda x: x - x.mean(0)),
        "every image by itself",
    ),
    "written-out softmax": (
        lambda: Around(after=lambda z: z.exp() / z.exp().sum(1, keepdim=True)),
        PROBABILITIES,
    ),
    "written-out sigmoid": (
        lambda: Around(after=lambda z: 1 / (1 + torch.exp(-z[:, :1]))),
        PROBABILITIES,
    ),
    "saturated": (lambda: Around(after=lambda z: (1e5 * z).softmax(1) * 1), "exactly 0 or 1"),
    "not finite": (lambda: Around(after=lambda z: z / 0), "logits must be finite"),
    "one size": (lambda: Around(before=lambda x: x.view(3, 1, 6, 6)), "batches of any size"),
}


def to_boundary(model):
    x = images()
    labels = plain()(x).topk(2).indices
    return {"labels": labels[:, 0], "targets": labels[:, 1], "tolerance": 1e9}


def universal(model):
    x = images(12)
    labels = torch.arange(12) % 3
    return universal_perturbation(model, x, radius=1.0, passes=1, labels=labels).perturbation


LABELLED = ("universal", "principal", "mean", "cure")
FUNCTIONS = {
    "universal": universal,
    "deepfool": lambda m: deepfool(m, images()).perturbations,
    "boundary": lambda m: boundary_points(m, images()).points,
    "principal": lambda m: principal_curvatures(m, images(), **to_boundary(m)).values,
    "mean": lambda m: mean_curvature(m, images(), **to_boundary(m)).values,
    "detector": lambda m: curvature_score(m, images(), h=0.5).scores,
    "cure": lambda m: cure_penalty(m, images(), torch.tensor([0, 1, 2, 0]), h=0.5),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FIRST)
def test_every_kind_of_network_has_the_numbers_of_the_plain_one(kind):
    model = FIRST[kind]()
    assert check_classifier(model, images(), classes=3).classes == 3
    for name, measure in FUNCTIONS.items():
        if name == "cure" and kind not in SAME:
            continue
        wanted = measure(plain())
        near = 1e-5 * max(1.0, float(wanted.detach().abs().nan_to_num().max()))
        torch.testing.assert_close(
            measure(model), wanted, rtol=1e-3, atol=2 * near, equal_nan=True, msg=f"{kind}: {name}"
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_networks_without_meaning_are_refused_by_every_function(kind):
    make, text = REFUSED[kind]
    functions = {"check": lambda m: check_classifier(m, images()), **FUNCTIONS}
    functions["fgsm"] = lambda m: fgsm(m, images(), eps=0.1)
    for name, measure in functions.items():
        # Reentrant checkpoints fail in CURE's own way, and a sigmoid has no third class.
        if (kind, name) in (("reentrant", "cure"), *(("sigmoid", n) for n in LABELLED)):
            continue
        with pytest.raises(InputError, match=text) as caught:
            measure(make())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", FOUND)
def test_the_check_finds_what_only_several_passes_can_tell(kind):
    make, text = FOUND[kind]
    model, given = make(), images(2)
    for layer in model.modules():
        assert not layer.training
    with pytest.raises(InputError, match=text) as caught:
        check_classifier(model, given)
    assert "\n" not in str(caught.value)
    assert torch.equal(given, images(2))


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (Around(after=Hidden.apply), "differ from differences of its gradients"),
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), "ReLU"),
        (Around(before=lambda x: x.clamp(0.0, 0.5) * 0 + x.clamp_min(2.0)), None),
    ],
)
def test_what_only_limits_measurements_is_a_note(model, text):
    if text is None:
        with pytest.raises(InputError, match="same logits"):
            check_classifier(model, images())
        return
    assert any(text in note for note in check_classifier(model, images()).notes)


@pytest.mark.parametrize("program", [False, True])
def test_what_is_no_module_is_refused(program):
    other = torch.export.export(plain(), (images(),)) if program else plain().forward
    with pytest.raises(InputError, match=r"model must be a torch\.nn\.Module"):
        check_model(other)


def test_an_untrained_network_may_still_be_constant():
    model = Around(after=lambda z: z * 0)
    assert check_classifier(model, images(), trained=False).classes == 3


def test_logits_of_one_class_in_the_unit_interval_are_no_probabilities():
    model = Around(after=lambda z: 0.5 + 0.01 * z[:, :1])
    assert check_classifier(model, images(), classes=("no", "yes")).classes == 2


def test_the_number_of_classes_is_that_of_the_data():
    with pytest.raises(InputError, match=r"classes must be 3, .*; got 4"):
        check_classifier(plain(), images(), classes=4)


def test_the_logit_of_a_sigmoid_is_what_it_was_given():
    model = LogProbabilities(Around(after=lambda z: z[:, 1:2].sigmoid()))
    torch.testing.assert_close(model(images()), plain()(images())[:, 1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("after", "text"),
    [(lambda z: z, "logits: the outputs lie in"), (lambda z: (1e5 * z).softmax(1), "saturated")],
)
def test_outputs_without_a_logarithm_are_refused(after, text):
    with pytest.raises(InputError, match=f"model.output must be .*{text}"):
        LogProbabilities(Around(after=after)).check(images())


def test_channels_come_last_only_where_a_network_bears_it():
    assert channels_last(Viewing(), images()).network[0].weight.is_contiguous()
    network = lenet(channels=3, size=(16, 16), classes=2, mean=(0.5,) * 3, std=(0.2,) * 3)
    given = torch.rand(2, 3, 16, 16)
    kept = channels_last(network, given)
    assert any(
        p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last)
        for p in kept.parameters()
    )
