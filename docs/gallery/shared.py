# %% [markdown]
# # Directions that images share
#
# If the normals of many images' boundaries lie in few directions, a single vector can push many
# images across. `geometry.normal_directions` (S_f, Section 6.3.1) finds the subspace that holds
# most of the normals. It is made from fifty digits here, and the others' normals are projected onto
# it.

# %%
import torch
from matplotlib import pyplot as plt

from robustness_geometry import attacks, datasets, geometry, models

model = models.pretrained("mnist5k_lenet")
images = datasets.sample_digits().images
normals = geometry.boundary_points(model, images, attack=attacks.nearest).normals.flatten(1)
seen, unseen = normals[:50], normals[50:]

shared = geometry.normal_directions(seen, 20)
random = geometry.normal_directions(
    torch.randn(seen.shape, generator=torch.Generator().manual_seed(0)), 20
)

# %% [markdown]
# How much of an unseen normal's square lies in the twenty directions?

# %%
held = {}
for name, found in (("normals", shared), ("random vectors", random)):
    held[name] = (unseen @ found.basis.T).square().cumsum(dim=1).mean(dim=0)
    print(f"20 directions of fifty {name:14} hold {held[name][-1]:.2f}")

# %%
figure = plt.figure(figsize=(9, 3.4))
pictures, plot = figure.subfigures(1, 2, width_ratios=(1, 1.2))
axes = pictures.subplots(2, 2)
for rank, (axis, direction) in enumerate(zip(axes.flat, shared.basis[:4], strict=True), start=1):
    span = float(direction.abs().max())
    axis.imshow(direction.view(28, 28), cmap="RdBu_r", vmin=-span, vmax=span)
    axis.set_title(f"direction {rank}")
    axis.axis("off")
axis = plot.subplots()
for name, shares in held.items():
    axis.plot(range(1, 21), shares, label=f"of fifty {name}")
axis.set(xlabel="number of directions", ylabel="share of unseen normals", ylim=(0, 1))
axis.set_title("What few directions hold of unseen normals")
axis.legend()
plt.show()
