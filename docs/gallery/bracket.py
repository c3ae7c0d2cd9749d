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
hidden = [nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()]
network = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(16, 10)).eval()
recipe = training.Recipe(epochs=60, batch_size=20, optimiser="adam", learning_rate=0.01)
model = training.train(network, digits.first(90), recipe).model

# %% [markdown]
# The last ten digits, which it was not trained on, at their predicted labels. Where the search has
# not closed after 200 subproblems, its nearest point so far stands in for the exact distance.

# %%
images = digits.images[90:]
exact = certify.exact_distance(model, images, time_limit=None, nodes=200)
distances = {
    "proved": certify.lower_bounds(model, images).radii,
    "exact": exact.upper,
    "nearest": attacks.nearest(model, images).perturbations.flatten(1).norm(dim=1),
    "DeepFool": attacks.deepfool(model, images).perturbations.flatten(1).norm(dim=1),
}
print(f"exact for {exact.status.count('exact')} of {len(exact)} digits")
for name, values in distances.items():
    print(f"{name:8}  over the exact distance: {(values / distances['exact']).mean():.4f}")

# %%
figure, axis = plt.subplots(figsize=(7, 3.6))
for (name, values), marker in zip(distances.items(), "^_ov", strict=True):
    size = 300 if name == "exact" else 40
    axis.scatter(distances["exact"], values / distances["exact"], marker=marker, s=size, label=name)
axis.set(
    xlabel="exact l2 distance of a digit", ylabel="distance / exact distance", ylim=(0.88, 1.07)
)
axis.set_title("The distance to the boundary, from below and from above")
axis.legend(loc="lower left")
plt.show()
