# %% [markdown]
# # Detection by curvature
#
# `detection.curvature_score` (Algorithm 6) is the mean curvature of the boundaries around an image,
# which should be higher for a perturbed one. The score depends on the length h over which it is
# measured, and on whether it is divided by the gradient's norm. Both are chosen on half of the
# digits, as is the threshold, and judged on the other half.

# %%
from itertools import product

import torch
from matplotlib import pyplot as plt

from robustness_geometry import attacks, datasets, detection, geometry, models

model = models.pretrained("mnist5k_lenet")
images = datasets.sample_digits().images
held, judged = images[:50], images[50:]


def beyond(clean):
    """The images just beyond their closest boundary points."""
    return clean + 1.02 * attacks.nearest(model, clean).perturbations


def area(perturbed, clean):
    """The area under the ROC curve of two sets of scores."""
    return float((perturbed[:, None] > clean).float().mean())


# %%
default = geometry.default_h(784)
held_moved = beyond(held)
chosen, best = {}, 0.0
for h, divided in product((0.1 * default, default, 3 * default), (False, True)):
    option = {"h": h, "normalise": divided, "directions": 5}
    clean = detection.curvature_score(model, held, **option).scores
    moved = detection.curvature_score(model, held_moved, **option).scores
    if area(moved, clean) > best:
        best, chosen = area(moved, clean), option
        threshold = detection.threshold_at(clean, 0.1)
print(f"chosen: h = {chosen['h']:.3f}, divided by the gradient's norm: {chosen['normalise']}")

# %% [markdown]
# Two kinds of perturbed images: just beyond the closest point, and where DeepFool ends. They do not
# look alike to the score. The baseline that a detector has to beat is `detection.confidence`, one
# minus the largest probability: close to the boundary any network is unsure.

# %%
sets = {
    "clean": judged,
    "closest point": beyond(judged),
    "DeepFool": attacks.deepfool(model, judged).adversarial(judged),
}
scores = {
    name: detection.curvature_score(model, each, **chosen).scores for name, each in sets.items()
}
unsure = {name: detection.confidence(model, each).scores for name, each in sets.items()}
for name in sets:
    flagged = (scores[name] >= threshold).float().mean()
    line = f"{name:13}  flagged {flagged:.2f}"
    if name != "clean":
        line += f"  area under the ROC curve {area(scores[name], scores['clean']):.2f}"
        line += f", of the confidence {area(unsure[name], unsure['clean']):.2f}"
    print(line)

# %%
figure, axes = plt.subplots(3, 1, figsize=(7, 4.2), sharex=True, sharey=True)
every = torch.cat(list(scores.values()))
edges = torch.linspace(float(every.min()), float(every.max()), 41).tolist()
for axis, (name, values) in zip(axes, scores.items(), strict=True):
    axis.hist(values.tolist(), bins=edges)
    axis.axvline(threshold, color="black", linewidth=1, linestyle="--")
    axis.set(ylabel="digits", title=name)
axes[-1].set_xlabel("curvature score (dashed: the threshold)")
plt.show()
