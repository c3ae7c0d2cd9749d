"""Chapter 6 and Section 7.4: flat and curved decision boundaries."""
