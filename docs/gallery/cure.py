# %% [markdown]
# # CURE
#
# CURE (chapter 8) fine-tunes a network with a penalty on how much the loss' gradient changes along
# the gradient's sign, so that the loss bends less. Here a few epochs on eighty digits, beside the
# same epochs without the penalty; both are judged on the twenty digits that are left.

# %%
import torch
from matplotlib import pyplot as plt
from torch.nn.functional import cross_entropy

from robustness_geometry import attacks, datasets, geometry, models, training

digits = datasets.sample_digits()
learned = digits.first(80)
images, labels = digits.images[80:], digits.labels[80:]

start = models.pretrained("mnist5k_lenet")
recipe = training.Recipe(epochs=8, batch_size=20, optimiser="adam", learning_rate=0.0001)
cure = training.Cure(weight=4.0, h=1.5, ramp=4)
networks = {
    "before": start,
    "plain": training.train(start, learned, recipe).model,
    "CURE": training.train(start, learned, recipe, objective=cure).model,
}

# %% [markdown]
# The penalty is the squared change of the gradient over h; the distance is that of
# `attacks.nearest`.

# %%
for name, model in networks.items():
    penalty = training.cure_penalty(model, images, labels, h=1.5).item()
    distance = attacks.nearest(model, images).perturbations.flatten(1).norm(dim=1).mean()
    error = (model(images).argmax(dim=1) != labels).float().mean()
    print(f"{name:6}  penalty {penalty:.3f}  mean distance {distance:.2f}  error {error:.2f}")

# %% [markdown]
# Beside the same epochs without it, the penalty keeps the loss flatter, and the boundary farther
# away. Eighty digits are too few for more: fine-tuning on them alone bends the loss, and the
# network that they start from, of thousands of digits, keeps the smallest penalty. Chapter 8's
# experiments (`python -m stages.cure`) train on all images.

# %%
steps = torch.linspace(0, 3, 31)
figure, axis = plt.subplots(figsize=(7, 3.6))
for name, model in networks.items():
    _, gradients = geometry.loss_gradients(model, images, labels)
    signs = gradients.sign() / gradients.sign().flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    with torch.no_grad():
        losses = [cross_entropy(model(images + step * signs), labels).item() for step in steps]
    axis.plot(steps, losses, label=name)
axis.set(xlabel="l2 distance along the gradient's sign", ylabel="mean loss", ylim=(0, None))
axis.set_title("The loss on twenty unseen digits")
axis.legend()
plt.show()
