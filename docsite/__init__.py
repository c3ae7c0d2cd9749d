"""What builds the pages in docs/: the gallery, the site's own parts, and the check of its links."""
