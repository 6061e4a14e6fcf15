"""Images in tar shards with a manifest, for sets too large for a folder or kept elsewhere."""
