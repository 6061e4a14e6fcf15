"""QM9: 130,831 molecules of up to nine heavy atoms."""
