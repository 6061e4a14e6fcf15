"""Endings of molecule files and what each holds. Imports nothing heavy, for the command line looks at them, too."""

from typing import Final, Literal

StructureFormat = Literal["sdf", "xyz"]
Format = Literal["sdf", "xyz", "smi", "csv", "parquet", "pyg", "msgpack", "pickle"]

#: Text with elements and positions.
STRUCTURES: Final[dict[str, StructureFormat]] = {
    ".sdf": "sdf",
    ".sd": "sdf",
    ".mol": "sdf",
    ".xyz": "xyz",
    ".extxyz": "xyz",
}
#: SMILES, one in a line or in a column of a table.
SMILES: Final[dict[str, Format]] = {
    ".smi": "smi",
    ".smiles": "smi",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
#: What other packages save; their endings alone do not say that it is molecules.
SAVED: Final[dict[str, Format]] = {".pt": "pyg", ".msgpack": "msgpack", ".pickle": "pickle"}
FORMATS: Final[dict[str, Format]] = {**STRUCTURES, **SMILES, **SAVED}
