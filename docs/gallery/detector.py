# %% [markdown]
# # Detection by curvature
#
# The mean curvature of the boundaries around a perturbed image is higher than around a natural one:
# `detection.curvature_score` (Algorithm 6) turns this into a score. The threshold is set on half of
# the clean digits, and judged on the other half and on their perturbed versions.

# %%
import torch
from matplotlib import pyplot as plt

from robustness_geometry import attacks, datasets, detection, geometry, models

model = models.pretrained("mnist5k_lenet")
images = datasets.sample_digits().images
held, judged = images[:50], images[50:]
h = geometry.default_h(784)
perturbed = attacks.deepfool(model, judged).adversarial(judged)

scores = {
    name: detection.curvature_score(model, each, h=h).scores
    for name, each in (("held out", held), ("clean", judged), ("perturbed", perturbed))
}
threshold = detection.threshold_at(scores["held out"], 0.1)
for name in ("clean", "perturbed"):
    share = (scores[name] >= threshold).float().mean()
    print(f"{share:.2f} of the {name} images count as perturbed")
pairs = scores["perturbed"][:, None] > scores["clean"]
print(f"area under the ROC curve: {pairs.float().mean():.2f}")

# %% [markdown]
# DeepFool ends just beyond the boundary, where any network is unsure. That alone gives it away:
# look at `detection.confidence`, the baseline that every detector has to beat.

# %%
unsure = {
    name: detection.confidence(model, each).scores
    for name, each in (("clean", judged), ("perturbed", perturbed))
}
pairs = unsure["perturbed"][:, None] > unsure["clean"]
print(f"area under the ROC curve of the confidence: {pairs.float().mean():.2f}")

# %%
figure, axis = plt.subplots(figsize=(7, 3.4))
every = torch.cat([scores["clean"], scores["perturbed"]])
edges = torch.linspace(float(every.min()), float(every.max()), 31).tolist()
for name in ("clean", "perturbed"):
    axis.hist(scores[name].tolist(), bins=edges, alpha=0.65, label=name)
axis.axvline(threshold, color="black", linewidth=1, linestyle="--", label="threshold")
axis.set(xlabel="score", ylabel="digits", title="The curvature score of fifty digits")
axis.legend()
plt.show()
