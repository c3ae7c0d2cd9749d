# %% [markdown]
# # A plane through three images
#
# `geometry.plane_sections` labels the points origin + x across + y upward. Three images span a
# plane; each of them lies in the region of its class, and the regions of other classes may come
# between.

# %%
import torch
from matplotlib import pyplot as plt

from robustness_geometry import datasets, geometry, models
from robustness_geometry.types import predict

model = models.pretrained("mnist5k_lenet")
first, second, third = datasets.sample_digits().images[:3].split(1)

across = second - first
width = across.norm()
upward = third - first
along = (upward * across).sum() / width**2
upward = upward - along * across  # orthogonal to across
height = upward.norm()
across, upward = across / width, upward / height

x = torch.linspace(-0.3, 1.3, 110) * width
y = torch.linspace(-0.3, 1.3, 110) * height
section = geometry.plane_sections(model, first, across, upward, x, y)

labels = section.labels[0]
for label in labels.unique().tolist():
    print(f"class {label}: {(labels == label).float().mean():.2f} of the plane shown")

# %% [markdown]
# Both axes are in pixel l2 units. The numbers stand at the three images.

# %%
figure, axis = plt.subplots(figsize=(6.2, 5))
shown = axis.pcolormesh(x, y, labels, cmap="tab10", vmin=-0.5, vmax=9.5, alpha=0.75)
corners = [(0.0, 0.0), (float(width), 0.0), (float(along * width), float(height))]
own = [int(predict(model, image)) for image in (first, second, third)]
for (place, level), label in zip(corners, own, strict=True):
    axis.text(place, level, str(label), ha="center", va="center", weight="bold", fontsize=14)
axis.set(aspect="equal", xlabel="along the second image", ylabel="towards the third image")
axis.set_title("The classes in the plane of three digits")
figure.colorbar(shown, ax=axis, ticks=range(10), label="class")
plt.show()
