"""Curvatures beside other libraries on a smooth network: the same values, and the products taken.

The others know the Hessian of a loss in the parameters of a network, so the image is passed as the
only parameter and the loss is F = f_target - f_label. Curvatures follow from their products with
the Hessian as from ours, in the tangent space and over the length of the gradient.
"""

import time
from collections.abc import Callable, Mapping
from importlib import metadata, util
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.counting import count_passes
from robustness_geometry.geometry import (
    Boundary,
    boundary_points,
    mean_curvature,
    principal_curvatures,
)
from robustness_geometry.randomness import normal

__all__ = ["PRODUCTS", "measure_curvature_peers", "paragraphs"]

Plain = Mapping[str, Any]
Products = Callable[["AsParameter", Tensor], Tensor]

SAMPLES = 10
"""Directions of the mean curvature."""

H = 1e-3
"""Length of this project's differences, in pixel units."""

SEED = 0


class AsParameter(nn.Module):
    """F around an image, which is the only parameter.

    Args:
        model: the network; its own parameters are none of this module's.
        point: a point of the boundary.
    """

    def __init__(self, model: nn.Module, point: Boundary) -> None:
        super().__init__()
        self.network = [model]  # in a list, so that its weights are not registered
        self.image = nn.Parameter(point.points.clone())
        self.label, self.target = int(point.labels), int(point.targets)

    def forward(self, _: Tensor) -> Tensor:
        """F (1, 1), whatever the input."""
        return self.at(self.image)

    def at(self, image: Tensor) -> Tensor:
        """F (1, 1) at ``image``."""
        logits = self.network[0](image)
        return logits[:, self.target, None] - logits[:, self.label, None]


class Identity(nn.Module):
    """A loss that is the network's output."""

    reduction = "mean"

    def forward(self, output: Tensor, _: Tensor) -> Tensor:
        """The mean of ``output``."""
        return output.mean()


def _torch_func(function: AsParameter, vectors: Tensor) -> Tensor:
    """Forward over reverse mode, all vectors at once."""
    image = function.image.detach()

    def value(z: Tensor) -> Tensor:
        return function.at(z)[0, 0]

    def product(vector: Tensor) -> Tensor:
        return torch.func.jvp(torch.func.grad(value), (image,), (vector.view_as(image),))[1]

    return torch.func.vmap(product)(vectors).flatten(1)


def _curvlinops(function: AsParameter, vectors: Tensor) -> Tensor:
    from curvlinops import HessianLinearOperator

    data = [(torch.zeros(1, 1).to(vectors), torch.zeros(1, 1).to(vectors))]
    operator = HessianLinearOperator(
        function, Identity(), [function.image], data, check_deterministic=False
    )
    found: Tensor = (operator @ vectors.T).T
    return found.detach()


def _eigenthings(function: AsParameter, vectors: Tensor) -> Tensor:
    from hessian_eigenthings import HessianOperator

    operator = HessianOperator(function, [torch.zeros(1, 1)], lambda model, x: model(x).mean())
    return torch.stack([operator.matvec(vector) for vector in vectors]).detach()


PRODUCTS: dict[str, tuple[str, str, Products]] = {
    "torch.func": ("torch", "torch", _torch_func),
    "curvlinops": ("curvlinops-for-pytorch", "curvlinops", _curvlinops),
    "hessian-eigenthings": ("hessian-eigenthings", "hessian_eigenthings", _eigenthings),
}
"""Name -> package, module, and products of the Hessian of F (d, d) with vectors (K, d)."""


def measure_curvature_peers(model: nn.Module, image: Tensor) -> dict[str, object]:
    """Principal and mean curvatures at one boundary point, by this project and its peers.

    Args:
        model: a smooth network in float64.
        image: (1, C, H, W), in float64.

    Returns:
        The rows, each with the products with the Hessian, the gradients counted by hooks, and the
        largest gap to ``torch.func``, as a share of the largest curvature.
    """
    point = boundary_points(model, image)
    rows, spectra, means = [], {}, {}
    for name, exact in (("this project", False), ("this project, exact=True", True)):
        options: dict[str, Any] = {"exact": True} if exact else {"h": H}
        generator = torch.Generator().manual_seed(SEED)
        start = time.perf_counter()
        with count_passes(model) as full:
            spectra[name] = principal_curvatures(model, point, **options).values[0]
        middle = time.perf_counter()
        with count_passes(model) as few:
            found = mean_curvature(model, point, samples=SAMPLES, generator=generator, **options)
        means[name] = found.values[0].double()
        rows.append(_entry(name, "", image.numel(), (full.backward, few.backward), middle - start))
    for name, (package, module, products) in PRODUCTS.items():
        if util.find_spec(module) is None:
            continue
        function = AsParameter(model, point)
        start = time.perf_counter()
        with count_passes(model) as full:
            spectra[name] = _spectrum(function, products)
        middle = time.perf_counter()
        with count_passes(model) as few:
            means[name] = _mean(function, products)
        version = metadata.version(package)
        counts = (full.backward, few.backward)
        rows.append(_entry(name, version, image.numel(), counts, middle - start))
    scale = spectra["torch.func"].abs().max()
    for row in rows:
        row["gap"] = float((spectra[row["name"]] - spectra["torch.func"]).abs().max() / scale)
        row["mean_gap"] = float((means[row["name"]] - means["torch.func"]).abs() / scale)
    return {"dimension": image.numel(), "samples": SAMPLES, "h": H, "rows": rows}


def _entry(
    name: str, version: str, dimension: int, gradients: tuple[int, int], seconds: float
) -> dict[str, Any]:
    return {
        "name": name,
        "version": version,
        "products": dimension,
        "gradients": gradients[0],
        "mean_products": SAMPLES,
        "mean_gradients": gradients[1],
        "seconds": seconds,
    }


def _gradient(function: AsParameter) -> Tensor:
    value = function.at(function.image)[0, 0]
    return torch.autograd.grad(value, function.image)[0].flatten().detach()


def _spectrum(function: AsParameter, products: Products) -> Tensor:
    """The principal curvatures, the largest first, from a product with each pixel."""
    gradient = _gradient(function)
    unit = gradient / gradient.norm()
    hessian = products(function, torch.eye(len(unit)).to(unit)).detach()
    # The other columns of an orthonormal basis that begins with the normal span the tangent space.
    basis = torch.linalg.qr(torch.cat([unit[:, None], torch.eye(len(unit)).to(unit)], dim=1)).Q
    tangent = basis[:, 1:].T @ hessian @ basis[:, 1:] / gradient.norm()
    return torch.linalg.eigvalsh((tangent + tangent.T) / 2).flip(0)


def _mean(function: AsParameter, products: Products) -> Tensor:
    """The mean over the directions that ``mean_curvature`` draws."""
    gradient, image = _gradient(function), function.image.detach()
    unit = gradient / gradient.norm()
    generator = torch.Generator().manual_seed(SEED)
    drawn = normal(image.new_empty(1, SAMPLES, *image.shape[1:]), generator)[0].flatten(1)
    vectors = drawn - (drawn @ unit)[:, None] * unit
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    along = (vectors * products(function, vectors).detach()).sum(dim=1)
    return along.mean() / gradient.norm()


def paragraphs(results: Plain) -> list[str]:
    """The measurements as lines of Markdown."""
    lines = [
        f"All curvatures of a random softplus network at one point, d = {results['dimension']}, "
        f"and the mean over {results['samples']} directions, in float64, beside libraries that "
        "get the image as the network's parameter. Gaps are to torch.func, over the largest "
        f"curvature; this project takes differences of gradients over {results['h']:g}, or "
        "differentiates twice (`exact=True`). Gradients are those that arrive at the image, "
        "counted by hooks: two a product, and one for the normal. Hooks do not see the tangents "
        "that torch.func and curvlinops push forward, all at once.",
        "",
        "| library | products | gradients | gap | products, mean | gradients, mean | gap, mean |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        cells = [
            f"{row['name']} {row['version']}".strip(),
            str(row["products"]),
            str(row["gradients"]),
            f"{row['gap']:.1e}",
            str(row["mean_products"]),
            str(row["mean_gradients"]),
            f"{row['mean_gap']:.1e}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
