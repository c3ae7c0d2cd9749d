"""The geometry of the image space around a classifier's decision boundary."""

from robustness_geometry.geometry.boundary import Boundary, boundary_points
from robustness_geometry.geometry.bounds import (
    Interval,
    corollary1_bounds,
    corollary1_excluded,
    curvature_limit,
    lemma2_bounds,
    lemma4_bounds,
    lemma7_gap,
    lemma8_gap,
    theorem1_bounds,
    theorem2_bounds,
    zeta_1,
    zeta_2,
)
from robustness_geometry.geometry.curvature import (
    Curvatures,
    MeanCurvature,
    mean_curvature,
    mean_hessian,
    normal_curvatures,
    principal_curvatures,
)
from robustness_geometry.geometry.directions import (
    PrincipalAngles,
    SharedDirections,
    curved_directions,
    normal_directions,
    principal_angles,
    shared_directions,
)
from robustness_geometry.geometry.hessian import default_h, hessian_vector_products
from robustness_geometry.geometry.krylov import (
    RitzPairs,
    extreme_curvatures,
    mean_hessian_ends,
    ritz_pairs,
)
from robustness_geometry.geometry.leading import hessian_operator, leading_curvatures
from robustness_geometry.geometry.loss_bounds import (
    LossBounds,
    quadratic_robustness,
    theorem5_bounds,
)
from robustness_geometry.geometry.loss_curvature import (
    LossCurvature,
    loss_curvature,
    loss_gradients,
    loss_hessian_products,
)
from robustness_geometry.geometry.mixing import convex_mixtures, stays_in_region
from robustness_geometry.geometry.normals import normals, tangent_projection
from robustness_geometry.geometry.paths import Path, deviation, find_path, find_paths
from robustness_geometry.geometry.random_directions import random_directions
from robustness_geometry.geometry.random_subspaces import (
    RandomSubspaces,
    beta_spread,
    expected_beta,
    random_subspace,
)
from robustness_geometry.geometry.second_differences import ClassCurvatures, class_curvatures
from robustness_geometry.geometry.sections import (
    Section,
    Stitched,
    boundary_heights,
    planar_curvature,
    plane_sections,
    stitched_section,
)
from robustness_geometry.geometry.spheres import Ball, inscribed_radius, sphere_step
from robustness_geometry.geometry.subspaces import (
    band_count,
    band_dimension,
    block_side,
    dct_band,
    orthonormalise,
    project_onto_band,
)
from robustness_geometry.geometry.surface import CurvatureOptions
from robustness_geometry.geometry.universal_bounds import (
    crosses_quadratic,
    theorem3_radius,
    theorem4_radius,
)

__all__ = [
    "Ball",
    "Boundary",
    "ClassCurvatures",
    "CurvatureOptions",
    "Curvatures",
    "Interval",
    "LossBounds",
    "LossCurvature",
    "MeanCurvature",
    "Path",
    "PrincipalAngles",
    "RandomSubspaces",
    "RitzPairs",
    "Section",
    "SharedDirections",
    "Stitched",
    "band_count",
    "band_dimension",
    "beta_spread",
    "block_side",
    "boundary_heights",
    "boundary_points",
    "class_curvatures",
    "convex_mixtures",
    "corollary1_bounds",
    "corollary1_excluded",
    "crosses_quadratic",
    "curvature_limit",
    "curved_directions",
    "dct_band",
    "default_h",
    "deviation",
    "expected_beta",
    "extreme_curvatures",
    "find_path",
    "find_paths",
    "hessian_operator",
    "hessian_vector_products",
    "inscribed_radius",
    "leading_curvatures",
    "lemma2_bounds",
    "lemma4_bounds",
    "lemma7_gap",
    "lemma8_gap",
    "loss_curvature",
    "loss_gradients",
    "loss_hessian_products",
    "mean_curvature",
    "mean_hessian",
    "mean_hessian_ends",
    "normal_curvatures",
    "normal_directions",
    "normals",
    "orthonormalise",
    "planar_curvature",
    "plane_sections",
    "principal_angles",
    "principal_curvatures",
    "project_onto_band",
    "quadratic_robustness",
    "random_directions",
    "random_subspace",
    "ritz_pairs",
    "shared_directions",
    "sphere_step",
    "stays_in_region",
    "stitched_section",
    "tangent_projection",
    "theorem1_bounds",
    "theorem2_bounds",
    "theorem3_radius",
    "theorem4_radius",
    "theorem5_bounds",
    "zeta_1",
    "zeta_2",
]
