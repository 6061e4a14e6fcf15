"""``unite export --format diffusers``: a folder that the package diffusers loads, with the code that it needs."""
