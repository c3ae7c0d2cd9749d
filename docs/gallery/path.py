# %% [markdown]
# # A path inside a region
#
# Are decision regions connected? `geometry.find_paths` (Algorithm 5) joins two points of one region
# by straight segments that stay in it. The ends here are a digit and another class' digit that a
# targeted DeepFool moved into the region: the straight line between them often leaves it.

# %%
import torch
from matplotlib import pyplot as plt

from robustness_geometry import attacks, datasets, geometry, models
from robustness_geometry.types import predict

model = models.pretrained("mnist5k_lenet")
images = datasets.sample_digits().images
starts, others = images[:20], images[20:40]
labels = predict(model, starts)
moved = attacks.deepfool(model, others, targets=labels)
inside = moved.success & (predict(model, others) != labels)
starts, ends = starts[inside], moved.adversarial(others)[inside]

paths = geometry.find_paths(model, starts, ends, spacing=1e-3)
straight = sum(path.straight for path in paths)
print(f"{len(paths)} pairs: the straight line stays in the region for {straight}")
print(f"a path was found for {sum(path.found for path in paths)}")
bent = [path for path in paths if path.found and not path.straight]
longest = max(path.deviation for path in bent)
print(f"the longest of the bent ones is {longest:.4f} times as long as the line")

# %% [markdown]
# The regions around the straight line (above) and around the path (below): the horizontal axis
# follows the path, the vertical one the first digit's smallest perturbation. The line is where the
# path runs.

# %%
path = max(bent, key=lambda each: each.deviation)
upward = attacks.nearest(model, path.anchors[:1]).perturbations[0]
heights = torch.linspace(-1.5, 1.5, 40)
figure, axes = plt.subplots(2, 1, figsize=(8, 4.6), sharex=True)
for axis, anchors in zip(axes, (path.anchors[[0, -1]], path.anchors), strict=True):
    section = geometry.stitched_section(model, anchors, upward, heights, columns=160)
    own = section.labels == predict(model, path.anchors[:1])
    axis.pcolormesh(section.x, section.y, own, cmap="Blues", vmin=0, vmax=2.5)
    axis.axhline(0, color="black", linewidth=1)
    for place in section.breaks[1:-1].tolist():
        axis.axvline(place, color="gray", linewidth=0.6, linestyle=":")
    axis.set(ylabel="height")
axes[0].set_title("Straight line (blue: the region of the first digit)")
axes[1].set_title(f"The path, of {len(path.anchors) - 1} segments")
axes[1].set_xlabel("length along it (pixel units)")
plt.show()
