"""How good molecules are: as generated, as reconstructed, as files."""
