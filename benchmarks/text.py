"""Do samples fulfil the sentence that they were asked for by? Digits judged by a classifier, molecules by RDKit.

Digits: phrases in wordings that training had, in wordings that are held out, and with words that no caption has. The
classifier is the network behind ``fid_digits``, trained on the real training digits.

Molecules: facts of one, two or three of ``FACTS`` (``unite.modalities.molecule.data.descriptions``), among them the
pairs that no caption names together. A molecule fulfils a sentence if all of its facts are true of what RDKit
perceives; an invalid one never does. Beside it: the share of the same model's samples without a prompt, and that of
the training molecules.

    python benchmarks/text.py runs/digits_text --root data/digits
    python benchmarks/text.py runs/qm9_text --root data/qm9 --num_samples 100 --scales 1 2 3
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from rdkit import Chem

from unite import UniteModule
from unite.modalities.image import DigitsDataModule
from unite.modalities.image.phrases import NAMES, phrase
from unite.modalities.molecule import QM9DataModule
from unite.modalities.molecule.data.descriptions import FACTS, HELD_OUT, facts_of, sentence

UNSEEN_WORDS = ("paint {} with a pencil", "could I have {}", "a picture of {}", "{} in chalk", "my lucky {}")
SINGLES = ("a three-membered ring", "a six-membered ring", "no ring", "an aromatic ring", "an alcohol", "a nitrile")
SEEN = (
    ("a three-membered ring", "a nitrile"),
    ("a four-membered ring", "an alcohol"),
    ("a five-membered ring", "an ether"),
    ("an alkyne", "an alcohol"),
    ("an aromatic ring", "one nitrogen atom"),
    ("no ring", "three oxygen atoms"),
)
TRIPLES = (
    ("a three-membered ring", "an ether", "an alkyne"),  # with a pair that is held out
    ("a five-membered ring", "an alcohol", "one nitrogen atom"),
)


def digits(module: UniteModule, options: argparse.Namespace) -> dict[str, Any]:
    """Share of digits that the classifier reads as what was asked for, by kind of wording and guidance scale."""
    network = DigitsDataModule(options.root).feature_network()
    num = options.num_samples
    kinds = {
        "wordings of the training": [phrase(n % 10, n) for n in range(num)],
        "wordings held out": [phrase(n % 10, n, held_out=True) for n in range(num)],
        "words that no caption has": [
            UNSEEN_WORDS[n // 20 % len(UNSEEN_WORDS)].format(NAMES[n % 10] if n // 10 % 2 else n % 10)
            for n in range(num)
        ],
    }
    results: dict[str, Any] = {"num_samples": num}
    for kind, prompts in kinds.items():
        for scale in options.scales:
            made = module.generate("image", num, prompt=prompts, guidance_scale=scale, seed=0, show_progress=True)
            images = torch.from_numpy(np.stack(made)).view(num, 1, 8, 8)
            read = network(images)[1].argmax(dim=1)
            is_right = read == torch.arange(num) % 10
            results.setdefault(kind, {})[f"{scale:g}"] = float(is_right.float().mean())
            print(f"{kind}, guidance {scale:g}: {is_right.float().mean():.1%}", flush=True)
    return results


def molecules(module: UniteModule, options: argparse.Namespace) -> dict[str, Any]:
    """Share of molecules that fulfil each sentence, by guidance scale, beside that without a prompt."""
    data = QM9DataModule(options.root, hydrogens="counted", captions=True)
    known = data.molecules().captions.facts[data.rows("train")]  # type: ignore[union-attr]
    free = judged(module, "", 10 * options.num_samples, 1.0)
    kinds: dict[str, Sequence[Sequence[str]]] = {
        "one fact": [(fact,) for fact in SINGLES],
        "two facts": SEEN,
        "two facts, held out": sorted(tuple(sorted(pair)) for pair in HELD_OUT),
        "three facts": TRIPLES,
    }
    rows = []
    for kind, asked in kinds.items():
        for facts in asked:
            wanted = set(facts)
            columns = [FACTS.index(fact) for fact in facts]
            row: dict[str, Any] = {
                "kind": kind,
                "prompt": sentence(facts),
                "training": float(known[:, columns].all(dim=1).float().mean()),
                "no prompt": share(free, wanted),
            }
            for scale in options.scales:
                made = judged(module, sentence(facts), options.num_samples, scale)
                row[f"{scale:g}"] = share(made, wanted)
                row[f"{scale:g} validity"] = 1 - made.count(None) / len(made)
            rows.append(row)
            told = {name: f"{value:.1%}" if isinstance(value, float) else value for name, value in row.items()}
            print(told, flush=True)
    validity = 1 - free.count(None) / len(free)
    return {"num_samples": options.num_samples, "validity without a prompt": validity, "rows": rows}


def judged(module: UniteModule, prompt: str, num: int, scale: float) -> list[frozenset[str] | None]:
    """What is true of each of the samples; None of an invalid one."""
    made = module.generate("molecule", num, prompt=prompt, guidance_scale=scale, seed=0)
    found: list[Chem.Mol | None] = [molecule.verdict.mol for molecule in made]
    return [None if mol is None else facts_of(mol) for mol in found]


def share(found: Sequence[frozenset[str] | None], wanted: set[str]) -> float:
    """Share of the samples of which all is true that is wanted."""
    return sum(facts is not None and wanted <= facts for facts in found) / len(found)


def draw(results: dict[str, Any], scales: Sequence[float], path: Path) -> None:
    """Bars of each sentence: without a prompt, and by guidance scale."""
    rows = results["rows"]
    names = ["no prompt", *(f"{scale:g}" for scale in scales)]
    figure, axis = plt.subplots(figsize=(8, 0.42 * len(rows) + 1), layout="constrained")
    height = 0.8 / len(names)
    colors = ["0.75", *plt.get_cmap("viridis")(np.linspace(0.25, 0.85, len(scales)))]
    for number, (name, color) in enumerate(zip(names, colors, strict=True)):
        places = np.arange(len(rows)) + number * height
        label = name if name == "no prompt" else f"guidance {name}"
        axis.barh(places, [100 * row[name] for row in rows], height, color=color, label=label)
    titles = [row["prompt"] + (" *" if frozenset(row["prompt"].split(" with ")) in HELD_OUT else "") for row in rows]
    axis.set_yticks(np.arange(len(rows)) + 0.4 - height / 2, titles)
    axis.invert_yaxis()
    axis.set(xlabel="share of samples, % (* held-out pair)", xlim=(0, 100))
    axis.margins(y=0.01)
    axis.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)


def draw_examples(module: UniteModule, modality: str, prompts: Sequence[str], path: Path) -> None:
    """Six samples of each prompt with guidance 2, a row for each, under the prompt."""
    figure, axes = plt.subplots(len(prompts), figsize=(9, 1.9 * len(prompts)), layout="constrained")
    for axis, prompt in zip(np.atleast_1d(axes), prompts, strict=True):
        made = module.generate(modality, 6, prompt=prompt, guidance_scale=2.0, seed=1)
        axis.imshow(np.hstack([np.asarray(module.adapters[modality].draw([item]).convert("RGB")) for item in made]))
        axis.set_title(prompt, loc="left", fontsize=10)
        axis.axis("off")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run of configs/digits_text.yaml or configs/qm9_text.yaml")
    parser.add_argument("--root", required=True, help="folder of the data")
    parser.add_argument("--num_samples", type=int, default=1000, help="for each kind of wording, or each sentence")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--output", type=Path, default=Path("text"))
    options = parser.parse_args()
    module = UniteModule.load_from_checkpoint(options.run, map_location="cpu").eval()
    options.output.mkdir(parents=True, exist_ok=True)
    if "image" in module.adapters:
        results, name = digits(module, options), "digits"
        prompts = [*(phrase(digit, digit, held_out=True) for digit in (3, 7)), UNSEEN_WORDS[0].format("eight")]
        draw_examples(module, "image", prompts, options.output / "digits.png")
    else:
        results, name = molecules(module, options), "qm9"
        draw(results, options.scales, options.output / "qm9.png")
        prompts = ["a three-membered ring with an alcohol", "an alkyne with an ether", "no ring with a nitrile"]
        draw_examples(module, "molecule", prompts, options.output / "molecules.png")
    (options.output / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"wrote {options.output / name}.json")


if __name__ == "__main__":
    main()
