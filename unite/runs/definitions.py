"""What the metrics mean, a sentence each, and how their numbers are written. Imports nothing heavy."""

import math
import re
from typing import NamedTuple

MISSING = "–"  # noqa: RUF001  (a dash of tables)

_SHARE, _NUMBER = True, False


class Definition(NamedTuple):
    """A metric.

    Attributes:
        words: What it is, in a sentence.
        is_share: Whether it is a share in [0, 1], which is shown as a percentage.
        unit: Its unit, if it has one.
    """

    words: str
    is_share: bool = _SHARE
    unit: str = ""


_DEFINITIONS: dict[str, Definition] = {
    # molecules, some of them of crystals, too
    r"validity": Definition(
        "Of all samples asked for. Molecules: those of one piece with known valences, bond orders that RDKit finds and "
        "sanitizes, no radical; bonds are perceived from elements and positions. Crystals: those whose structure and "
        "composition are valid."
    ),
    r"validity_(bonds|as_written)": Definition("Samples that are molecules by the bonds that they come with."),
    r"validity_edm": Definition("Valid by the distance table of Hoogeboom et al. (2022), which fills up hydrogens."),
    r"validity_adit": Definition("Valid as ADiT counts it, with OpenBabel's bonds."),
    r"uniqueness(_\w+)?": Definition("Distinct ones among the valid; falls with the number of samples."),
    r"valid_unique(_\w+)?": Definition("Distinct valid molecules, of all samples asked for."),
    r"validity_icsd24": Definition(
        "Crystals whose structure and composition are valid, with the oxidation states that are smact 4's default."
    ),
    r"novelty(_\w+)?": Definition("Distinct valid ones that the training data lacks. Not a measure of quality."),
    r"charged_carbon(_bonds)?": Definition(
        "Valid only with a charge on a carbon, which real molecules hardly have; part of the validity."
    ),
    r"neutral(_bonds)?": Definition("Valid, and no carbon has a charge."),
    r"neutral_unique(_bonds)?": Definition("Distinct valid molecules without a charge on a carbon, of all samples."),
    r"mean_rings(_bonds)?": Definition(
        "Rings of a valid molecule; fewer than the data's are a sign of narrowing.", _NUMBER
    ),
    r"connected(_bonds)?": Definition("Samples in one piece, whatever the valences."),
    r"mean_atoms(_bonds)?": Definition("Atoms of a sample, counted hydrogens included.", _NUMBER),
    r"atom_stability": Definition("Atoms with the right valence by the distance table of Hoogeboom et al. (2022)."),
    r"molecule_stability": Definition(
        "Molecules of which all atoms are stable by the table of Hoogeboom et al. (2022)."
    ),
    r"bonds_agree": Definition("Valid by predicted bonds and by positions, with the same bonds."),
    r"match_rate": Definition(
        "Molecules: reconstructions with all atom types right and an RMSD below 0.1 Å after the best rotation. "
        "Crystals: those that StructureMatcher matches with the tolerances of the literature."
    ),
    r"match_rate_005": Definition("As match rate, with 0.05 Å."),
    r"match_rate_03": Definition("As match rate, with 0.3 Å."),
    r"rmsd": Definition(
        "Distance of atoms after the best rotation, mean over reconstructions with all types right.", _NUMBER, "Å"
    ),
    r"rmsd_unaligned": Definition("As RMSD, without rotation.", _NUMBER, "Å"),
    r"type_accuracy": Definition("Atoms of the right type, of those reconstructed."),
    r"type_correct": Definition("Reconstructions with all types right."),
    r"exact_graph": Definition("Reconstructions with every atom, bond and charge right."),
    r"atom_accuracy": Definition("Atoms with the right element, hydrogens and charge, of those reconstructed."),
    r"bond_accuracy": Definition("Of the pairs that are bonded or predicted to be, those of the right type."),
    r"bond_accuracy/.*": Definition("Of the pairs that truly are of this type, those predicted so."),
    r"charge_accuracy": Definition("Of the atoms with a charge, those with the right one predicted."),
    r"reject\w*/.*": Definition("Samples that were refused for this reason, the first that was found."),
    r"atoms/.*": Definition("Atoms of the molecules.", _NUMBER),
    r"element/.*": Definition("Of all atoms."),
    r"distance/.*": Definition("How far the valid molecules are from the reference; see docs/evaluation.md.", _NUMBER),
    r"floor/.*": Definition("The same distance between two halves of the reference.", _NUMBER),
    r"(samples|reference)/group/.*": Definition("Valid molecules with this functional group."),
    r"(samples|reference)/.*": Definition(
        "Mean of a valid molecule; scaffolds: distinct ones of the first 1,000.", _NUMBER
    ),
    r"num_molecules": Definition("Molecules that were judged.", _NUMBER),
    # physics
    r"physics\w*/strain_(median|90th)": Definition(
        "Energy that relaxing a molecule by GFN2-xTB sets free.", _NUMBER, "eV"
    ),
    r"physics\w*/energy_drop_(median|90th)": Definition(
        "Energy that relaxing a crystal by CHGNet sets free.", _NUMBER, "eV/atom"
    ),
    r"physics\w*/energy_drop_below_.*": Definition("Share of crystals that release less than this many eV/atom."),
    r"physics\w*/rmsd_median": Definition("Way of the atoms on relaxation.", _NUMBER, "Å"),
    r"physics\w*/volume_change_median": Definition("Relative change of the cell's volume on relaxation."),
    r"physics\w*/bonds_kept": Definition("Bonds that are bonds after relaxation, mean over molecules."),
    r"physics\w*/same_bonds": Definition("Molecules with the same bonds after relaxation, neither fewer nor more."),
    r"physics\w*/converged": Definition("Relaxed within the steps allowed."),
    r"physics\w*/failed": Definition("Of those to be relaxed, those that the method could not treat."),
    r"physics\w*/num": Definition("Molecules or crystals that were to be relaxed.", _NUMBER),
    # crystals
    r"structure_validity": Definition("Crystals whose atoms are at least 0.5 Å apart, in a cell of at least 0.1 Å³."),
    r"structure_validity_random": Definition("The control: the same cells and elements with random coordinates."),
    r"composition_validity(_icsd24)?": Definition(
        "Crystals whose charges balance, anions the more electronegative, by smact's rules."
    ),
    r"sites_right": Definition("Crystals whose atoms are near the sites that the data has, in any order."),
    r"copies_cut": Definition("Valid crystals not compared with all, for want of time; they count as copies."),
    r"density_w1(_real)?": Definition(
        "Wasserstein-1 distance of densities to the training crystals; real: of its halves.", _NUMBER, "g/cm³"
    ),
    r"num_elements_w1(_real)?": Definition(
        "Wasserstein-1 distance of numbers of elements to the training crystals; real: of its halves.", _NUMBER
    ),
    r"match_rate_strict": Definition("Reconstructions that StructureMatcher matches with pymatgen's tolerances."),
    r"match_rate(_strict)?_random": Definition("The control: what random coordinates in the true cells reach."),
    r"rms(_strict)?": Definition(
        "Displacement of matched crystals in units of the cube root of the volume of an atom.", _NUMBER
    ),
    r"types_right": Definition("Reconstructions with all elements right."),
    r"atom_types_right": Definition("Atoms of the right element, of those reconstructed."),
    r"match_cut": Definition("Reconstructions not compared to the end, for want of time; they count as no match."),
    r"num_crystals": Definition("Crystals that were judged.", _NUMBER),
    # images
    r"fid": Definition("Fréchet distance to reference images in Inception's features; lower is better.", _NUMBER),
    r"fid_\w+": Definition(
        "Fréchet distance in the features of another network: no FID, and to be compared with its own kind only; lower "
        "is better.",
        _NUMBER,
    ),
    r"rfid(_\w+)?": Definition(
        "Fréchet distance of reconstructions to their originals, in the same features; lower is better.", _NUMBER
    ),
    r"kid(_\w+)?": Definition("Kernel distance to reference images; lower is better.", _NUMBER),
    r"inception_score(_\w+)?": Definition("Confidence and variety of a classifier on samples.", _NUMBER),
    r"precision(_\w+)?": Definition("Samples that lie among the reference images."),
    r"recall(_\w+)?": Definition("Reference images that lie among the samples."),
    r"psnr": Definition("Peak signal-to-noise ratio of reconstructions; higher is better.", _NUMBER, "dB"),
    r"ssim": Definition("Structural similarity of reconstructions; 1 is equal.", _NUMBER),
    r"l1": Definition("Mean absolute error of pixels of reconstructions.", _NUMBER),
    r"lpips": Definition("Perceptual distance of reconstructions; lower is better.", _NUMBER),
}


def definition(metric: str) -> Definition:
    """What a metric is; without words if it is none that is known.

    Args:
        metric: Its name, with ``stage/modality/`` before it or not.
    """
    own = re.sub(r"^(train|val|test|samples|reconstructions|any)/[^/]*/", "", metric)
    found = (known for pattern, known in _DEFINITIONS.items() if re.fullmatch(pattern, own))
    return next(found, Definition("", _NUMBER))


def written(metric: str, value: float | None) -> str:
    """A value as a report writes it: shares in per cent, others with their unit, a dash for none."""
    if value is None or math.isnan(value):
        return MISSING
    known = definition(metric)
    if known.is_share:
        return f"{100 * value:.2f} %" if 0 < value < 0.1 or 0.99 < value < 1 else f"{100 * value:.1f} %"
    return f"{value:,.4g} {known.unit}".strip() if abs(value) < 1000 else f"{value:,.0f} {known.unit}".strip()
