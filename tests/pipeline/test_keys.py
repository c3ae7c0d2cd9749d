import enum
import functools
import importlib
import os
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import hypothesis.strategies  # noqa: F401 - an installed module whose file counts
import numpy as np
import pytest
import safetensors.torch  # noqa: F401
import torch
from torch import nn

from pipeline.keys import Fingerprint, Sources
from robustness_geometry import norms as norms_module
from robustness_geometry.types import Split


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


@dataclass(frozen=True)
class Options:
    steps: int
    norm: float


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


def triple(x: torch.Tensor) -> torch.Tensor:
    return 3 * x


class Scaled(nn.Module):
    def __init__(self, scale: float = 1.0, act: object = double) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.scale = scale
        self.act = act
        self.register_buffer("mean", torch.zeros(3), persistent=False)


def of(value: object) -> bytes:
    return Fingerprint().of(value)


def scaled(**options: object) -> Scaled:
    torch.manual_seed(0)
    return Scaled(**options)


DISTINCT = [
    None,
    0,
    0.0,
    -0.0,
    False,
    1,
    1.0,
    True,
    1j,
    "1",
    b"1",
    "",
    (),
    [1],
    (1, (2,)),
    (1, 2),
    {"a": 1},
    {"a": 2},
    {"b": 1},
    {1, 2},
    {1},
    range(3),
    float("inf"),
    float("nan"),
    Mode.FAST,
    Options(1, 2.0),
    Mode.SLOW,
    Options(2, 2.0),
    double,
    triple,
    Options,
    functools.partial(double),
    functools.partial(triple),
    functools.partial(double, 1),
    functools.partial(double, x=1),
    torch.float32,
    torch.float64,
    torch.device("cpu"),
    torch.device("cuda"),
    torch.zeros(2),
    torch.zeros(2, dtype=torch.float64),
    torch.zeros(2, dtype=torch.int32),
    torch.zeros(1, 2),
    torch.zeros(0),
    torch.zeros(()),
    torch.ones(2),
    torch.tensor([True]),
    torch.zeros(2, dtype=torch.bfloat16),
    np.zeros(2, np.int8),
    np.float64(3),
    Split(torch.zeros(1, 1, 2, 2), torch.zeros(1)),
    nn.ReLU(),
    nn.ReLU(True),
    nn.GELU(),
]


def test_different_values_have_different_fingerprints():
    digests = {of(value): value for value in DISTINCT}
    assert len(digests) == len(DISTINCT)


@pytest.mark.parametrize(
    "value", DISTINCT, ids=[type(value).__name__ + str(k) for k, value in enumerate(DISTINCT)]
)
def test_equal_values_have_equal_fingerprints(value):
    assert of(value) == of(value)


def test_layout_in_memory_and_gradient_do_not_count():
    images = torch.arange(12.0).reshape(3, 4)
    assert of(images) == of(images.T.contiguous().T) == of(images.clone().requires_grad_())


def test_any_of_several_equal_devices_will_do():
    assert of(torch.device("cuda", 0)) == of(torch.device("cuda", 1))


def test_order_of_keywords_does_not_count():
    assert of(functools.partial(double, a=1, b=2)) == of(functools.partial(double, b=2, a=1))


def test_a_network_depends_on_all_that_its_output_does():
    base = of(scaled())
    assert base == of(scaled())
    changed = [scaled(scale=2.0), scaled(act=triple), scaled().train(False)]
    weight, buffer, hooked = scaled(), scaled(), scaled()
    weight.linear.weight.data[0, 0] += 1e-7
    buffer.mean[0] = 1.0
    hooked.register_forward_hook(print)
    digests = {of(model) for model in [*changed, weight, buffer, hooked]}
    assert len(digests | {base}) == 7


def test_renaming_a_layer_changes_the_network():
    layers = [nn.ReLU(), nn.Flatten()]
    first = nn.Sequential(OrderedDict(zip("ab", layers, strict=True)))
    assert of(first) != of(nn.Sequential(OrderedDict(zip("ac", layers, strict=True))))


def test_a_network_may_hold_a_lambda_and_it_counts():
    def factor(k):
        return lambda x: k * x

    assert of(scaled(act=factor(2))) == of(scaled(act=factor(2)))
    assert of(scaled(act=factor(2))) != of(scaled(act=factor(3)))
    assert of(scaled(act=lambda x: x + 1)) != of(scaled(act=lambda x: x + 2))


def test_a_network_that_refers_to_itself_ends():
    model = scaled()
    model.act = [model]
    assert of(model) == of(model)


def test_modules_of_functions_and_networks_are_gathered():
    finger = Fingerprint()
    finger.of(functools.partial(norms_module.norms, model=nn.Sequential(Scaled())))
    assert {"robustness_geometry.norms", __name__} <= finger.modules


class _Local:
    def method(self) -> None: ...


@pytest.mark.parametrize(
    "value",
    [lambda x: x, Path("file"), object(), _Local().method, torch.Generator(), (1, [lambda: 0])],
    ids=["lambda", "path", "object", "method", "generator", "nested"],
)
def test_what_has_no_fingerprint_raises_with_its_place(value):
    with pytest.raises(TypeError, match=r"attack.*has no fingerprint"):
        Fingerprint().of(functools.partial(double, value), "attack")


def test_an_open_file_and_a_closure_raise(tmp_path):
    def closure() -> Path:
        return tmp_path

    with pytest.raises(TypeError, match="local definition"):
        of(closure)
    with (tmp_path / "f").open("w") as file, pytest.raises(TypeError, match="has no fingerprint"):
        of(file)
    with (
        (tmp_path / "f").open("w") as file,
        pytest.raises(TypeError, match=r"act: .*let the layer hold"),
    ):
        of(scaled(act=file))


SCRIPT = """
import functools, torch
from torch import nn
from pipeline.keys import Fingerprint, Sources
from robustness_geometry.norms import project
torch.manual_seed(0)
value = functools.partial(project, nn.Linear(3, 2), {"b", "a", "c"}, p=2.0, images=torch.arange(5))
finger = Fingerprint()
print(finger.of(value).hex(), Sources().digest(finger.modules).hex())
"""


def test_keys_are_equal_in_every_process(root, capsys):
    other = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    ).stdout
    exec(SCRIPT, {})
    assert capsys.readouterr().out == other
    assert len(other.split()) == 2


# The source that counts


FILES = {
    "toyland/__init__.py": "",
    "toyland/attacks/__init__.py": (
        "from .quick import quick\nfrom .slow import slow as late\nLIMIT = 3\n"
    ),
    "toyland/attacks/quick.py": "from ..tools import helper\ndef quick(x):\n    return helper(x)\n",
    "toyland/attacks/slow.py": "import torch\ndef slow(x):\n    return x\n",
    "toyland/tools.py": "def helper(x):\n    from toyland import deep\n    return x\n",
    "toyland/deep.py": "VALUE = 1\n",
    "toyland/stage.py": (
        "from toyland.attacks import quick\nimport toyland.aside\ndef run(x): ...\n"
    ),
    "toyland/aside.py": "",
    "toyland/whole.py": "from toyland.attacks import *\ndef run(x):\n    return x\n",
    "toyland/limit.py": "from toyland.attacks import LIMIT\n",
    "toyland/late.py": "from toyland.attacks import late\n",
    "toyland/runner.py": "from toyland import stage\n",
}


@pytest.fixture
def toyland(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "toyland"]:
        del sys.modules[name]


def names(*short: str) -> set[str]:
    return {f"toyland.{name}" for name in short}


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("stage", names("stage", "attacks.quick", "tools", "deep", "aside")),
        ("whole", names("whole", "attacks", "attacks.quick", "attacks.slow", "tools", "deep")),
        ("limit", names("limit", "attacks", "attacks.quick", "attacks.slow", "tools", "deep")),
        ("late", names("late", "attacks.slow")),
    ],
)
def test_the_closure_follows_imports_and_only_those(toyland, start, expected):
    closure = Sources(("toyland",)).closure(f"toyland.{start}")
    assert closure - {"toyland"} == expected
    assert "toyland" not in sys.modules


def test_only_edits_of_what_is_imported_change_the_digest(toyland):
    def digest() -> bytes:
        return Sources(("toyland",)).digest(["toyland.stage"])

    before = digest()
    (toyland / "toyland/attacks/slow.py").write_text("def slow(x):\n    return 2 * x\n")
    (toyland / "toyland/runner.py").write_text("")
    (toyland / "toyland/deep.py").write_text("# a remark\nVALUE  =  1\n")
    assert digest() == before
    (toyland / "toyland/deep.py").write_text("VALUE = 2\n")
    assert digest() != before


def test_docstrings_do_not_enter_a_key_and_code_does(toyland):
    def digest(text: str) -> bytes:
        (toyland / "toyland/deep.py").write_text(text)
        return Sources(("toyland",)).digest(["toyland.stage"])

    before = digest("VALUE = 1\n\n\ndef twice(x):\n    return 2 * x\n")
    documented = (
        '"""A module."""\n\nVALUE = 1\n"""A constant."""\n\n\n'
        'def twice(x):\n    """Twice x."""\n    return 2 * x\n'
    )
    assert digest(documented) == before
    assert digest(documented.replace("Twice x.", "Two times x.")) == before
    assert digest(documented.replace("2 * x", "x + x")) != before
    assert digest(documented.replace("VALUE = 1", 'VALUE = "A constant."')) != before


def test_an_edit_during_a_run_does_not_change_its_keys(toyland):
    sources = Sources(("toyland",))
    (toyland / "toyland/deep.py").write_text("VALUE = 2\n")
    assert sources.digest(["toyland.stage"]) != Sources(("toyland",)).digest(["toyland.stage"])


def test_the_readers_own_modules_count_without_being_named(toyland):
    finger = Fingerprint()
    finger.of(importlib.import_module("toyland.stage").run)
    before = Sources().digest(finger.modules)
    (toyland / "toyland/deep.py").write_text("VALUE = 2\n")
    assert Sources().digest(finger.modules) != before


def test_installed_modules_count_by_their_own_file():
    sources = Sources()
    digests = {sources.digest([name]) for name in ("safetensors.torch", "hypothesis.strategies")}
    assert len(digests | {sources.digest([])}) == 3
    assert sources.digest(["torch.nn.functional", "builtins"]) == sources.digest([])


@pytest.mark.parametrize(
    ("module", "used", "unused"),
    [
        (
            "pipeline.studies.attacking",
            {"attacks.deepfool", "attacks.fgsm"},
            {"attacks", "attacks.lbfgs"},
        ),
        (
            "stages.attack.dct_bands",
            {"geometry.subspaces"},
            {"geometry", "geometry.curvature", "attacks.lbfgs"},
        ),
        (
            "robustness_geometry.attacks.deepfool",
            {"attacks.gradients"},
            {"attacks", "attacks.fgsm"},
        ),
    ],
)
def test_a_new_attack_leaves_the_keys_of_the_others_alone(module, used, unused):
    closure = Sources().closure(module)
    assert {f"robustness_geometry.{name}" for name in used} <= closure
    assert not {f"robustness_geometry.{name}" for name in unused} & closure


def test_the_executor_is_not_part_of_what_it_runs():
    assert Sources().closure("pipeline.executor") == set()


def test_a_function_without_a_file_is_refused(monkeypatch):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(TypeError, match="no source file"):
        Sources().digest(["__main__"])
