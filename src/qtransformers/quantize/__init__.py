"""Better numbers in as many bits: what is measured of a model, and what is made of it."""
