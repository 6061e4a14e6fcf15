"""Molecules out of your own files: SDF, MOL, XYZ and SMILES, with conformers made where there are none."""
