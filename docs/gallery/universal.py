# %% [markdown]
# # One vector for many images
#
# `attacks.universal_perturbation` (Algorithm 4) looks for one vector v of bounded norm that changes
# the labels of as many images as it can. It is made from fifty digits here, with a norm of three
# tenths of a digit's own, and judged on the fifty others, beside a random vector of the same norm.

# %%
import torch
from matplotlib import pyplot as plt

from robustness_geometry import attacks, datasets, models
from robustness_geometry.types import predict

model = models.pretrained("mnist5k_lenet")
images = datasets.sample_digits().images
seen, unseen = images[:50], images[50:]
radius = float(0.3 * seen.flatten(1).norm(dim=1).mean())

found = attacks.universal_perturbation(model, seen, radius=radius, passes=3)
noise = torch.randn(seen[:1].shape, generator=torch.Generator().manual_seed(0))
noise = noise * radius / noise.norm()

print(f"radius {radius:.2f}, {found.passes} passes: {found.stopped}")
print(f"v fools      {found.fooling_rate:.2f} of the digits that it was made from")
for name, vector in (("v fools     ", found.perturbation), ("noise fools ", noise)):
    share = attacks.fooled(model, unseen, vector).float().mean()
    print(f"{name} {share:.2f} of the others")

# %%
figure, axes = plt.subplots(2, 6, figsize=(9, 3.4))
for row, (name, vector) in enumerate((("v", found.perturbation), ("noise", noise))):
    span = float(found.perturbation.abs().max())
    axes[row, 0].imshow(vector[0, 0], cmap="RdBu_r", vmin=-span, vmax=span)
    axes[row, 0].set_title(name)
    moved = unseen[:5] + vector
    before, after = predict(model, unseen[:5]).tolist(), predict(model, moved).tolist()
    for axis, image, old, new in zip(axes[row, 1:], moved, before, after, strict=True):
        axis.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
        axis.set_title(f"{old} stays" if old == new else f"{old} becomes {new}")
for axis in axes.flat:
    axis.axis("off")
plt.show()
