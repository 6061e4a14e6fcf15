"""Do crystals have the formula that they were asked for?

Formulas are those of test crystals. Of each, samples are drawn with several scales of guidance; what counts is the
share whose reduced formula is exactly the one asked for. Beside it the base rate: the unconditional prediction of the
same model (guidance 0) from the same noise, in the same sizes.

    python benchmarks/crystal_compositions.py runs/crystals_formula --output compositions.json
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import torch

from unite import UniteModule, UserError
from unite.modalities.crystal import CrystalDataModule
from unite.modalities.crystal.elements import SYMBOLS
from unite.modalities.template import Wanted

Formula = tuple[tuple[int, int], ...]
"""Element and number of its atoms in the reduced formula."""


def written(formula: Formula) -> str:
    return "".join(f"{SYMBOLS[number]}{count if count > 1 else ''}" for number, count in formula)


def formulas_of_test_crystals(data: CrystalDataModule, most: int, module: UniteModule) -> list[Formula]:
    """Formulas of two elements or more that the model has cells and elements for, in an order drawn by a fixed seed."""
    table, rows = data.table(), data.rows("test")
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    found = dict.fromkeys(table.crystal(row).composition for row in rows.tolist())
    return list(islice((formula for formula in found if len(formula) > 1 and is_known(module, formula)), most))


def is_known(module: UniteModule, formula: Formula) -> bool:
    try:
        module.adapters["crystal"].wanted_template(1, Wanted(composition=written(formula)))
    except UserError:
        return False
    return True


def measure(module: UniteModule, formulas: list[Formula], each: int, scale: float) -> dict[str, float]:
    """Shares of samples with the elements asked for, with the formula, and with the formula and valid."""
    adapter = module.adapters["crystal"]
    at_all_times = {} if scale else {"guidance_interval": (0.0, 1.0)}  # or a guidance of 0 would act at some alone
    exact = elements = valid = 0
    for place, formula in enumerate(formulas):
        made = module.generate(
            "crystal", each, composition=written(formula), seed=place, guidance_scale=scale, **at_all_times
        )
        hits = [crystal for crystal in made if crystal.composition == formula]
        exact += len(hits)
        elements += sum(set(crystal.atomic_numbers.tolist()) == {number for number, _ in formula} for crystal in made)
        valid += sum(adapter.are_valid(hits))
    total = each * len(formulas)
    return {"exact": exact / total, "elements": elements / total, "exact_and_valid": valid / total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run that was trained with compositions")
    parser.add_argument("--formulas", type=int, default=20)
    parser.add_argument("--num_samples", type=int, default=200, help="of all formulas together, with each scale")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 3.0])
    parser.add_argument("--source", default="materials_project_small")
    parser.add_argument("--output", type=Path, default=Path("compositions.json"))
    options = parser.parse_args()
    module = UniteModule.load_from_checkpoint(options.run, map_location="cpu").eval()
    formulas = formulas_of_test_crystals(CrystalDataModule(options.source), options.formulas, module)
    each = max(1, options.num_samples // len(formulas))
    results = {}
    for scale in (0.0, *options.scales):
        title = f"guidance {scale:g}" if scale else "no formula"
        results[title] = measure(module, formulas, each, scale)
        print(title, results[title], flush=True)
    print(f"{'':<18}{'exact':>8}{'elements':>10}{'and valid':>11}")
    for title, found in results.items():
        print(f"{title:<18}{found['exact']:8.1%}{found['elements']:10.1%}{found['exact_and_valid']:11.1%}")
    told = {"formulas": [written(formula) for formula in formulas], "results": results}
    options.output.write_text(json.dumps(told, indent=2) + "\n")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
