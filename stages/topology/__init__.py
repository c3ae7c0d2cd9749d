"""Section 7.3: the connectedness and convexity of decision regions."""
