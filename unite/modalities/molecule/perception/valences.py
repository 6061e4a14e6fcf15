"""Bond orders and formal charges by valence rules alone: the best assignment, found exactly, with a work limit.

Every atom chooses a *state*: how many bonds it has beyond the single ones to its neighbours (`extra`), its formal
charge, and a cost. Extra bonds must pair up along the bonds, charges must add up to the total, and the sum of costs
is to be least: no charges before some, common valences before rare ones, and among equals double bonds where bonds are
short. Only atoms that can have extra bonds matter, and of these only those that hang together: such a component is
solved by dynamic programming along an order of its atoms. What has been decided about atoms whose neighbours are
all done can be forgotten, so a table of what is still open at the border (a few atoms in a molecule, however large)
holds all that can still matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from typing import Final, NamedTuple

MAX_STATES: Final = 100_000
"""Work allowed to a molecule: entries of tables. Drug-like molecules take a few hundred."""

_MAX_EXTRA: Final = 2  # of one bond, which is then triple
_CHARGE: Final = 100.0  # cost; valences cost 1, so that any neutral form comes first
_LENGTH: Final = 1e-3  # weight of bond lengths, which only break ties

# Neutral valences by atomic number, common ones first.
NEUTRAL_VALENCES: Final[dict[int, tuple[int, ...]]] = {
    1: (1,),
    5: (3,),
    6: (4,),
    7: (3,),
    8: (2,),
    9: (1,),
    14: (4,),
    15: (3, 5),
    16: (2, 4, 6),
    17: (1, 3, 5, 7),
    32: (4,),
    33: (3, 5),
    34: (2, 4, 6),
    35: (1, 3, 5, 7),
    52: (2, 4, 6),
    53: (1, 3, 5, 7),
}

# Charged states (charge, valence, cost beside that of being charged) by atomic number; the costs follow
# electronegativity. Where carbon and halogens may have them: `_states`.
_CHARGED: Final[dict[int, tuple[tuple[int, int, float], ...]]] = {
    5: ((-1, 4, 5.0),),
    6: ((-1, 3, 30.0), (1, 3, 60.0)),
    7: ((1, 4, 0.0), (-1, 2, 15.0)),
    8: ((-1, 1, 0.0), (1, 3, 40.0)),
    15: ((1, 4, 20.0), (-1, 2, 40.0)),
    16: ((-1, 1, 5.0), (1, 3, 30.0)),
    33: ((1, 4, 20.0),),
    34: ((-1, 1, 5.0), (1, 3, 30.0)),
    52: ((-1, 1, 5.0), (1, 3, 30.0)),
    35: ((1, 2, 50.0),),
    53: ((1, 2, 40.0),),
}


class _State(NamedTuple):
    """What an atom can be: bonds beyond the single ones, formal charge, cost."""

    extra: int
    charge: int
    cost: float


_INERT: Final = _State(0, 0, 0.0)  # nothing to decide


class Orders(NamedTuple):
    """Bond orders and charges.

    Attributes:
        orders: Order of each bond, as they were given.
        charges: Formal charge of each atom.
    """

    orders: list[int]
    charges: list[int]


class OutOfWorkError(RuntimeError):
    """The search for bond orders has reached :data:`MAX_STATES`."""


def assign_orders(
    atomic_numbers: Sequence[int],
    degrees: Sequence[int],
    bonds: Sequence[Sequence[int]],
    lengths: Sequence[float],
    charge: int = 0,
) -> Orders | None:
    """The bond orders and formal charges of least cost, or None if none fit.

    Args:
        atomic_numbers: Elements of the atoms, hydrogens left out.
        degrees: Neighbours of each atom, hydrogens among them.
        bonds: Pairs of atoms that are bonded.
        lengths: Length of each bond as a share of the sum of covalent radii; breaks ties.
        charge: Total charge.

    Raises:
        OutOfWorkError: It takes too much work.
    """
    problem = _Problem(atomic_numbers, degrees, bonds, lengths, charge)
    return problem.solve()


class _Chain(NamedTuple):
    """What was chosen, as a list that shares its tail with others: an atom and its charge, or a bond and its extra."""

    kind: str
    which: int
    value: int
    before: _Chain | None


class _Best(NamedTuple):
    """The cheapest way to something."""

    cost: float
    chain: _Chain | None


class _Problem:
    """One molecule."""

    def __init__(
        self,
        atomic_numbers: Sequence[int],
        degrees: Sequence[int],
        bonds: Sequence[Sequence[int]],
        lengths: Sequence[float],
        charge: int,
    ) -> None:
        self.atomic_numbers = atomic_numbers
        self.degrees = degrees
        self.bonds = bonds
        self.lengths = lengths
        self.charge = charge
        self.num_states = 0
        self.neighbours: list[list[tuple[int, int]]] = [[] for _ in atomic_numbers]  # atom, bond
        for bond, (first, second) in enumerate(bonds):
            self.neighbours[first].append((second, bond))
            self.neighbours[second].append((first, bond))
        self.states = [self._states_of(atom) for atom in range(len(atomic_numbers))]

    def solve(self) -> Orders | None:
        """First with the cheapest state of every atom, then with the neutral ones, then with charges as well."""
        if not all(self.states):
            return None
        cheapest = [tuple(state for state in each if state.cost == each[0].cost) for each in self.states]
        neutral = [tuple(state for state in each if state.cost < _CHARGE) or each for each in self.states]
        for allowed in (cheapest, neutral, self.states):
            if (found := self._total(allowed)) is not None:
                return self._as_orders(found)
        return None

    def _states_of(self, atom: int) -> tuple[_State, ...]:
        """States of an atom, those with charges last."""
        around = tuple([(self.atomic_numbers[other], self.degrees[other]) for other, _ in self.neighbours[atom]])
        return _states(self.atomic_numbers[atom], self.degrees[atom], _surroundings(around), self.charge)

    def _total(self, allowed: list[tuple[_State, ...]]) -> _Best | None:
        """The cheapest choice of all atoms together, or None."""
        states = self._pruned(allowed)
        if states is None:
            return None
        best = {0: _Best(0.0, None)}
        for component in self._components(states):
            found = self._component(component, states)
            combined: dict[int, _Best] = {}
            for charge, (cost, chain) in best.items():
                for more, (more_cost, more_chain) in found.items():
                    total = charge + more
                    if total not in combined or cost + more_cost < combined[total].cost - 1e-9:
                        combined[total] = _Best(cost + more_cost, _joined(chain, more_chain))
            best = combined
        return best.get(self.charge)

    def _pruned(self, allowed: list[tuple[_State, ...]]) -> list[tuple[_State, ...]] | None:
        """States without those whose extra bonds the neighbours cannot take; None if an atom has none left."""
        states = list(allowed)
        most = [max([state.extra for state in each]) for each in states]
        waiting = [atom for atom, extra in enumerate(most) if extra]
        while waiting:
            atom = waiting.pop()
            room = sum([min(most[other], _MAX_EXTRA) for other, _ in self.neighbours[atom]])
            if most[atom] <= room:
                continue
            kept = tuple(state for state in states[atom] if state.extra <= room)
            if not kept:
                return None
            if len(kept) < len(states[atom]):
                states[atom] = kept
                most[atom] = max(state.extra for state in kept)
                waiting += [other for other, _ in self.neighbours[atom]]
        return states

    def _components(self, states: list[tuple[_State, ...]]) -> Iterator[list[int]]:
        """Atoms that can have extra bonds with one another, in an order in which few are open at a time."""
        is_active = [each[0].extra > 0 or any(state.extra for state in each) for each in states]
        seen = [False] * len(states)
        for start, each in enumerate(states):
            if seen[start] or (len(each) == 1 and each[0] == _INERT):
                continue
            seen[start] = True
            order = [start]
            if is_active[start]:
                for atom in order:  # grows: breadth first
                    for other, _ in self.neighbours[atom]:
                        if is_active[other] and not seen[other]:
                            seen[other] = True
                            order.append(other)
            yield order

    def _component(self, order: list[int], states: list[tuple[_State, ...]]) -> dict[int, _Best]:
        """The cheapest choice of a component by its charge.

        Raises:
            OutOfWorkError: It takes too much work.
        """
        if len(order) == 1:
            atom = order[0]
            single = [state for state in states[atom] if state.extra == 0]
            return {
                state.charge: _Best(state.cost, _Chain("atom", atom, state.charge, None) if state.charge else None)
                for state in reversed(single)
            }
        place = {atom: index for index, atom in enumerate(order)}
        edges = [
            [(place[other], bond) for other, bond in self.neighbours[atom] if place.get(other, len(order)) < index]
            for index, atom in enumerate(order)
        ]
        last = list(range(len(order)))  # when an atom has met all of its neighbours
        for index, earlier in enumerate(edges):
            for other, _ in earlier:
                last[other] = index
        border: list[int] = []
        table: dict[tuple[int, tuple[int, ...]], _Best] = {(0, ()): _Best(0.0, None)}
        for index, atom in enumerate(order):
            places = [(border.index(other), bond) for other, bond in edges[index]]
            border.append(index)
            kept = [number for number, other in enumerate(border) if last[other] > index]
            closed = [number for number, other in enumerate(border) if last[other] <= index]
            table = self._extended(table, atom, states[atom], places, kept, closed)
            border = [border[number] for number in kept]
        return {charge: best for (charge, _), best in table.items()}

    def _extended(
        self,
        table: dict[tuple[int, tuple[int, ...]], _Best],
        atom: int,
        states: tuple[_State, ...],
        places: list[tuple[int, int]],
        kept: list[int],
        closed: list[int],
    ) -> dict[tuple[int, tuple[int, ...]], _Best]:
        """The table with one atom more.

        Args:
            table: By charge so far and by what each atom at the border still has to place.
            atom: The new atom.
            states: Its states.
            places: Where at the border its neighbours are, and the bonds to them.
            kept: Places at the new border that stay.
            closed: Places that have met all neighbours, so that nothing may be left to place.
        """
        extended: dict[tuple[int, tuple[int, ...]], _Best] = {}
        for (charge, open_), (cost, chain) in table.items():
            for state in states:
                choices: list[tuple[tuple[int, ...], float, _Chain | None]] = [
                    (
                        (*open_, state.extra),
                        cost + state.cost,
                        _Chain("atom", atom, state.charge, chain) if state.charge else chain,
                    )
                ]
                for where, bond in places:
                    choices += [raised for known in choices for raised in self._raised(known, where, bond)]
                for left, price, path in choices:
                    if any(left[number] for number in closed):
                        continue
                    key = (charge + state.charge, tuple([left[number] for number in kept]))
                    if key not in extended or price < extended[key].cost - 1e-9:
                        extended[key] = _Best(price, path)
        self.num_states += len(extended)
        if self.num_states > MAX_STATES:
            raise OutOfWorkError(f"more than {MAX_STATES:,} states")
        return extended

    def _raised(
        self, choice: tuple[tuple[int, ...], float, _Chain | None], where: int, bond: int
    ) -> Iterator[tuple[tuple[int, ...], float, _Chain | None]]:
        """A choice with one and with two bonds more between the new atom and one at the border."""
        left, cost, chain = choice
        for extra in range(1, min(left[where], left[-1], _MAX_EXTRA) + 1):
            after = list(left)
            after[where] -= extra
            after[-1] -= extra
            price = cost + _LENGTH * extra * self.lengths[bond]
            yield tuple(after), price, _Chain("bond", bond, extra, chain)

    def _as_orders(self, found: _Best) -> Orders:
        orders, charges = [1] * len(self.bonds), [0] * len(self.atomic_numbers)
        chain = found.chain
        while chain is not None:
            if chain.kind == "bond":
                orders[chain.which] += chain.value
            else:
                charges[chain.which] = chain.value
            chain = chain.before
        self._separate_charges(orders, charges)
        return Orders(orders, charges)

    def _separate_charges(self, orders: list[int], charges: list[int]) -> None:
        """Write nitrogen with five bonds (nitro, azide, N-oxide) with charges, as RDKit does."""
        for atom, number in enumerate(self.atomic_numbers):
            bonds = [bond for _, bond in self.neighbours[atom]]
            extra = sum(orders[bond] - 1 for bond in bonds)
            if number != 7 or charges[atom] != 0 or self.degrees[atom] + extra != 5:
                continue
            multiple = [(other, bond) for other, bond in self.neighbours[atom] if orders[bond] > 1]
            other, bond = min(
                multiple, key=lambda pair: (self.degrees[pair[0]], -_AFFINITY.get(self.atomic_numbers[pair[0]], 0))
            )
            orders[bond] -= 1
            charges[atom], charges[other] = 1, charges[other] - 1


_AFFINITY: Final = {8: 4, 16: 3, 34: 2, 7: 1}  # which neighbour of a nitrogen takes the negative charge


class _Surroundings(NamedTuple):
    """What of an atom's neighbours matters for its states.

    Attributes:
        has_end: Whether one is an oxygen, sulfur or selenium without other neighbours.
        has_nitrogen: Whether one is a nitrogen.
        has_open_nitrogen: Whether one is a nitrogen with at most two neighbours.
        num_heavy: How many are not hydrogens.
        num_acceptors: How many are nitrogen, oxygen, sulfur or halogens, which more than eight electrons take.
    """

    has_end: bool
    has_nitrogen: bool
    has_open_nitrogen: bool
    num_heavy: int
    num_acceptors: int


@lru_cache(maxsize=10_000)
def _surroundings(around: tuple[tuple[int, int], ...]) -> _Surroundings:
    """Of neighbours, each its atomic number and how many neighbours it has."""
    return _Surroundings(
        any(number in (8, 16, 34) and degree == 1 for number, degree in around),
        any(number == 7 for number, _ in around),
        any(number == 7 and degree <= 2 for number, degree in around),
        len(around),
        sum(number in (7, 8, 9, 16, 17, 34, 35) for number, _ in around),
    )


@cache
def _states(number: int, degree: int, around: _Surroundings, total_charge: int) -> tuple[_State, ...]:
    """States of an atom with so many neighbours, hydrogens among them, cheapest first."""
    valences = [valence for valence in NEUTRAL_VALENCES.get(number, ()) if valence >= degree]
    if number in (16, 17, 34, 35, 52, 53):  # each pair beyond the common valence takes an acceptor, and none a hydrogen
        num_pairs = around.num_acceptors if around.num_heavy == degree else 0
        valences = [valence for valence in valences if valence <= NEUTRAL_VALENCES[number][0] + 2 * num_pairs]
        if degree == 4:
            valences.reverse()  # sulfones before SF4
    if number == 7 and degree >= 3 and around.has_end:
        valences = [5, *valences]  # its oxygen can only be bonded doubly, or have a charge
    elif number == 7 and degree >= 2 and around.has_open_nitrogen:
        valences = [*valences, 5]
    states = [_State(valence - degree, 0, float(rank)) for rank, valence in enumerate(valences)]
    if number == 6 and not total_charge and not (degree == 1 and around.has_nitrogen):
        return tuple(states)  # carbon carries a charge in ions, and in isocyanides
    for charge, valence, cost in _CHARGED.get(number, ()):
        is_onium = charge > 0 and number in (8, 16, 34, 35, 52, 53)
        if valence >= degree and (not is_onium or degree == 3 or total_charge > 0):
            states.append(_State(valence - degree, charge, _CHARGE + cost))
    return tuple(states)


def _joined(chain: _Chain | None, more: _Chain | None) -> _Chain | None:
    """Both lists as one."""
    while more is not None:
        chain = more._replace(before=chain)
        more = more.before
    return chain
