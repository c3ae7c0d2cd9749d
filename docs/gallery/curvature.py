# %% [markdown]
# # The curvature profile
#
# At a point of the boundary, `geometry.principal_curvatures` gives all d - 1 principal curvatures.
# A curvature is positive where the image's own region lies inside a ball, and negative where it
# lies outside one. It is measured over a length h, as networks of ReLUs have no second derivatives.

# %%
from matplotlib import pyplot as plt

from robustness_geometry import attacks, datasets, geometry, models

model = models.pretrained("mnist5k_lenet")
images = datasets.sample_digits().images[:40]
h = geometry.default_h(784)

# %% [markdown]
# Two points belong to each image: the closest that is found, and the place where DeepFool's
# perturbation crosses the boundary. The mean curvature can differ between them, so that a number
# always says at which point it was measured.

# %%
points = {
    "closest": geometry.boundary_points(model, images, attack=attacks.nearest),
    "crossing": geometry.boundary_points(model, images, refinements=0),
}
for name, boundary in points.items():
    mean = geometry.mean_curvature(model, boundary, samples=20, h=h).values
    cosine = boundary.angles.cos().mean()
    print(
        f"{name:8}  cos(r, n) {cosine:.3f}  median mean curvature {mean.median():+.4f}"
        f"  negative for {(mean < 0).float().mean():.2f} of the images"
    )

# %% [markdown]
# The whole profile of three closest points takes 2 d gradients each. Most directions are nearly
# flat, and a few at either end are curved.

# %%
three = points["closest"].select(slice(0, 3))
profiles = geometry.principal_curvatures(model, three, h=h).values
flat = (profiles.abs() < 0.1 * profiles.abs().amax(dim=1, keepdim=True)).float().mean()
print(f"{flat:.2f} of the curvatures are below a tenth of the largest one")

figure, axis = plt.subplots(figsize=(7, 3.6))
for label, profile in zip(three.labels.tolist(), profiles, strict=True):
    axis.plot(range(1, 784), profile, label=f"a {label}")
axis.axhline(0, color="gray", linewidth=0.8)
axis.set(xlabel="number of the principal curvature", ylabel="curvature (1 / pixel unit)")
axis.set_title("All principal curvatures at the closest points of three digits")
axis.legend()
plt.show()
