# %% [markdown]
# # A distance between two bounds
#
# An attack bounds the distance to the boundary from above, a certificate from below. On a small
# network of ReLUs the search closes, and the exact distance stands between them.

# %%
import torch
from matplotlib import pyplot as plt
from torch import nn

from robustness_geometry import attacks, certify, datasets, training

digits = datasets.sample_digits()
torch.manual_seed(0)
network = nn.Sequential(nn.Flatten(), nn.Linear(784, 12), nn.ReLU(), nn.Linear(12, 10)).eval()
recipe = training.Recipe(epochs=60, batch_size=20, optimiser="adam", learning_rate=0.01)
model = training.train(network, digits.first(90), recipe).model

# %% [markdown]
# The last ten digits, which it was not trained on, at their predicted labels:

# %%
images = digits.images[90:]
distances = {
    "proved": certify.lower_bounds(model, images).radii,
    "exact": certify.exact_distance(model, images, time_limit=10).upper,
    "nearest": attacks.nearest(model, images).perturbations.flatten(1).norm(dim=1),
    "DeepFool": attacks.deepfool(model, images).perturbations.flatten(1).norm(dim=1),
}
for name, values in distances.items():
    print(f"{name:8}  over the exact distance: {(values / distances['exact']).mean():.4f}")

# %%
figure, axis = plt.subplots(figsize=(7, 3.6))
order = distances["exact"].argsort()
for (name, values), marker in zip(distances.items(), "^_ov", strict=True):
    size = 260 if name == "exact" else 45
    axis.scatter(range(len(order)), values[order], marker=marker, s=size, label=name, zorder=2)
axis.set(xlabel="digit, sorted by its exact distance", ylabel="l2 distance", ylim=(0, None))
axis.set(xticks=range(len(order)), title="The distance to the boundary, from below and from above")
axis.legend()
plt.show()
