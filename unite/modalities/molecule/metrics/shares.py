"""What is counted of generated molecules, whichever way they are judged, and the shares that follow.

Needs no torch: counts may be tensors, of a metric over several processes, or plain numbers.
"""

from typing import Any, NamedTuple


class Counts(NamedTuple):
    """Numbers of molecules, and of their atoms; tensors or plain numbers.

    Attributes:
        requested: All that were asked for, failures included.
        valid: Those that are valid.
        distinct: Keys of valid molecules, each counted once.
        charged_carbon: Those that are valid only with a charge on a carbon.
        distinct_charged: Keys of these, each counted once.
        rings: Rings of all valid molecules.
        connected: Those that are one piece.
        atoms: Atoms, counted hydrogens included.
    """

    requested: Any
    valid: Any
    distinct: Any
    charged_carbon: Any
    distinct_charged: Any
    rings: Any
    connected: Any
    atoms: Any

    def shares(self, suffix: str = "") -> dict[str, Any]:
        """The metrics that every way to judge molecules has, under their names with ``suffix``."""
        values = {
            "validity": share(self.valid, self.requested),
            "uniqueness": share(self.distinct, self.valid),
            "valid_unique": share(self.distinct, self.requested),
            "charged_carbon": share(self.charged_carbon, self.requested),
            "neutral": share(self.valid - self.charged_carbon, self.requested),
            "neutral_unique": share(self.distinct - self.distinct_charged, self.requested),
            "mean_rings": share(self.rings, self.valid),
            "connected": share(self.connected, self.requested),
            "mean_atoms": share(self.atoms, self.requested),
        }
        return {f"{name}{suffix}": value for name, value in values.items()}


def share(count: Any, total: Any) -> Any:
    """``count / total``, and zero of nothing."""
    return count / max(total, 1)
