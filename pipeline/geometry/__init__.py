"""The geometry of the image space around a classifier's decision boundary."""

from pipeline.geometry.subspaces import (
    band_count,
    band_dimension,
    block_side,
    dct_band,
    expected_beta,
    orthonormalise,
    project_onto_band,
    random_subspace,
)

__all__ = [
    "band_count",
    "band_dimension",
    "block_side",
    "dct_band",
    "expected_beta",
    "orthonormalise",
    "project_onto_band",
    "random_subspace",
]
