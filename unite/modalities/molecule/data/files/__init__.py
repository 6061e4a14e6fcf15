"""Molecules out of people's own files: SDF, MOL, XYZ and SMILES, with conformers made where there are none."""
