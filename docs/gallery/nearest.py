# %% [markdown]
# # The smallest perturbation
#
# `attacks.deepfool` finds a perturbation r that fools in some ten gradients; `attacks.nearest` goes
# on until r is as short as it can make it. cos(r, n), the alignment of r with the boundary's
# normal, tells them apart without a longer search: it is 1 for a closest point. Distances are l2
# norms, in units of pixels in [0, 1].

# %%
from matplotlib import pyplot as plt

from robustness_geometry import attacks, datasets, models

model = models.pretrained("mnist5k_nin")
images = datasets.sample_digits().images[:20]

found = {
    "DeepFool": attacks.deepfool(model, images),
    "nearest": attacks.nearest(model, images),
}

# %% [markdown]
# Both fool all digits. DeepFool's r is the longer one, and its cosine says so.

# %%
norms, cosines = {}, {}
for name, result in found.items():
    norms[name] = result.perturbations.flatten(1).norm(dim=1)
    cosines[name] = attacks.alignment(model, images, result.perturbations)
    print(
        f"{name:8}  fooled {result.success.float().mean():.2f}  mean ||r|| {norms[name].mean():.2f}"
        f"  mean cos(r, n) {cosines[name].mean():.2f}"
    )

# %% [markdown]
# Left, four digits with their labels, and r of either attack (one scale of colours in a row) with
# the label that it leads to and its norm; right, all twenty digits.

# %%
figure = plt.figure(figsize=(9, 5))
pictures, plot = figure.subfigures(1, 2, width_ratios=(1, 1.25))
axes = pictures.subplots(4, 3)
for row in range(4):
    shown = [images[row], *(result.perturbations[row] for result in found.values())]
    span = max(float(each.abs().max()) for each in shown[1:])
    axes[row, 0].imshow(shown[0][0], cmap="gray_r")
    axes[row, 0].set_title(f"{found['nearest'].labels[row]}")
    for axis, each, (name, result) in zip(axes[row, 1:], shown[1:], found.items(), strict=True):
        axis.imshow(each[0], cmap="RdBu_r", vmin=-span, vmax=span)
        axis.set_title(f"{name}: {result.adversarial_labels[row]}, {norms[name][row]:.2f}")
    for axis in axes[row]:
        axis.axis("off")
axis = plot.subplots()
for name in found:
    axis.scatter(norms[name], cosines[name], label=name)
axis.set(
    xlabel="||r||", ylabel="cos(r, n)", ylim=(0, 1.05), title="Shorter and more along the normal"
)
axis.legend()
plt.show()
