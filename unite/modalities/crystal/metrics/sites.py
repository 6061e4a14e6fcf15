"""Whether the atoms of a crystal lie at given sites, as the five of a perovskite do."""

import numpy as np
from numpy.typing import NDArray

from unite.modalities.crystal.crystal import Crystal

SITE_TOLERANCE = 0.15
"""Of the fractional coordinates, in units of the cell vectors; 73 % of Perov-5 lie within, and no random ones."""


def has_sites(crystal: Crystal, sites: NDArray[np.float64], tolerance: float = SITE_TOLERANCE) -> bool:
    """Whether the atoms, in some order and from some origin, lie within a tolerance of sites (A, 3) in each coordinate.

    Every atom is tried as the one at each site, and the others are then given the nearest sites.
    """
    if crystal.num_atoms != len(sites) or not np.isfinite(crystal.fractional).all():
        return False
    for site in sites:
        for atom in crystal.fractional:
            moved = crystal.fractional - atom + site
            apart = moved[:, None] - sites
            apart = np.abs(apart - np.round(apart)).max(axis=-1)  # (A, A)
            nearest = apart.argmin(axis=1)
            if len(set(nearest.tolist())) == len(sites) and apart.min(axis=1).max() < tolerance:
                return True
    return False
