"""How good images are: as generated, as reconstructed, as files; and the networks whose features are compared."""
