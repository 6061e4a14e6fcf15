"""What can be said of a molecule in a sentence, found by RDKit: rings, groups, and numbers of some elements.

The captions of QM9 are made of it, and whether generated molecules are what a sentence asks for is judged by it.
"""

import random
from collections.abc import Collection, Sequence
from functools import cache
from typing import Final

from rdkit import Chem

GROUPS: Final = {
    "an aromatic ring": "a",
    "an alcohol": "[CX4][OX2H]",
    "an ether": "[#6;!$([#6]=[O,N])][OX2][#6;!$([#6]=[O,N])]",
    "an amine": "[NX3;!$(NC=[O,N]);!$(N[#7,#8]);!$(N[a])][#6]",
    "an amide": "[NX3]C=[OX1]",
    "a nitrile": "[CX2]#[NX1]",
    "an aldehyde": "[CX3H1](=[OX1])[#6]",
    "a ketone": "[#6][CX3](=[OX1])[#6]",
    "an ester": "[#6][CX3](=[OX1])[OX2][#6]",
    "an alkene": "[CX3]=[CX3]",
    "an alkyne": "[CX2]#[CX2]",
    "an imine": "[CX3]=[NX2]",
    "fluorine": "F",
}
"""SMARTS of groups. Hydrogens may be atoms or be counted."""

_RINGS: Final = {3: "three", 4: "four", 5: "five", 6: "six", 7: "seven"}
_COUNTS: Final = {1: "one {} atom", 2: "two {} atoms", 3: "three {} atoms"}
_ELEMENTS: Final = {7: "nitrogen", 8: "oxygen"}

FACTS: Final = (
    *(f"a {name}-membered ring" for name in _RINGS.values()),
    "no ring",
    *GROUPS,
    *(words.format(element) for element in _ELEMENTS.values() for words in _COUNTS.values()),
)
"""All that is said of molecules, in the words of the captions."""

HELD_OUT: Final = frozenset(
    {
        frozenset({"a three-membered ring", "an alcohol"}),
        frozenset({"a four-membered ring", "an aldehyde"}),
        frozenset({"a five-membered ring", "a nitrile"}),
        frozenset({"an alkyne", "an ether"}),
        frozenset({"an amine", "a ketone"}),
        frozenset({"no ring", "an amide"}),
    }
)
"""Pairs that no caption names together, though molecules have both: combinations that a model never read."""

_MOST_FACTS: Final = 3
_JOINTS: Final = (" with ", " and ")


def facts_of(mol: Chem.Mol) -> frozenset[str]:
    """Those of :data:`FACTS` that are true of a molecule."""
    sizes = {len(ring) for ring in Chem.GetSymmSSSR(mol)}
    found = {f"a {name}-membered ring" for size, name in _RINGS.items() if size in sizes}
    if not sizes:
        found.add("no ring")
    found.update(name for name, pattern in _patterns().items() if mol.HasSubstructMatch(pattern))
    numbers = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    for number, element in _ELEMENTS.items():
        if words := _COUNTS.get(numbers.count(number)):
            found.add(words.format(element))
    return frozenset(found)


def sentence(facts: Sequence[str], joint: str = " with ") -> str:
    """The facts in a sentence, in their order: ``a three-membered ring with an alcohol and fluorine``."""
    first, *rest = facts
    return first + (joint + " and ".join(rest) if rest else "")


def describe(facts: Collection[str], number: int) -> str | None:
    """A caption that names up to three of the facts, and no pair of :data:`HELD_OUT`; None if there are none.

    Args:
        facts: What is true of a molecule.
        number: Chooses facts, their order and the wording, at random but always the same.
    """
    chooser = random.Random(number)
    known = sorted(facts)
    chooser.shuffle(known)
    wanted, said = chooser.randint(1, _MOST_FACTS), list[str]()
    for fact in known:
        if len(said) < wanted and not any(frozenset({fact, other}) in HELD_OUT for other in said):
            said.append(fact)
    if not said:
        return None
    return chooser.choice(("", "", "a molecule with ")) + sentence(said, chooser.choice(_JOINTS))


@cache
def _patterns() -> dict[str, Chem.Mol]:
    return {name: Chem.MolFromSmarts(pattern) for name, pattern in GROUPS.items()}
