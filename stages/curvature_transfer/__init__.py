"""Chapter 6: the curved subspaces of two networks."""
