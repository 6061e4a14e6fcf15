"""Do molecules have the property that they were asked for? By EDM's protocol (arXiv:2203.17003, section 5.2).

A regressor that has nothing to do with the model is trained on the half of QM9's training molecules that the model was
not trained on (``num_train: 50000`` of configs/qm9_gap.yaml), and predicts the property of what the model generates.
Pairs of size and target are those of real molecules. Beside it: the regressor's own error on test molecules; targets
against those of other molecules (random); targets against the median of their size (size only); and the same model
without a target.

    python benchmarks/conditions.py runs/qm9_gap --root data/qm9 --num_samples 1000 --output conditions
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from unite import UniteModule
from unite.modalities.atoms import pair_distances
from unite.modalities.molecule import QM9DataModule
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.preparation import PreparedMolecules

NUM_TRAIN = 50_000  # of the model; the others are the regressor's
BATCH = 256


class Regressor(nn.Module):
    """One property from types and distances of the atoms: attention between atoms, biased by their distances.

    Args:
        num_types: Types of atoms.
        width: Channels.
        depth: Blocks.
        num_heads: Attention heads.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, num_types: int, width: int = 96, depth: int = 4, num_heads: int = 6) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.embedding = nn.Embedding(num_types, width)
        self.register_buffer("centres", torch.linspace(0.8, 6.0, 24))
        self.bias = nn.Linear(24, depth * num_heads)
        self.messages = nn.Linear(24, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "in": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "mlp": nn.Sequential(
                        nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
                    ),
                }
            )
            for _ in range(depth)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, molecules: PreparedMolecules) -> Tensor:
        """Predicted property, shape (B,)."""
        mask = molecules.mask  # (B, A)
        distances = pair_distances(molecules.positions)[..., None]
        waves = torch.exp(-(((distances - self.centres) / 0.25) ** 2)) * (distances > 0)  # (B, A, A, 24)
        bias = self.bias(waves).unflatten(-1, (len(self.blocks), self.num_heads)).permute(3, 0, 4, 1, 2)
        bias = bias.masked_fill(~mask[:, None, None], -1e9)
        neighbours = (waves * mask[:, None, :, None]).sum(dim=2)
        hidden = self.embedding(molecules.types) + self.messages(neighbours)
        for block, offsets in zip(self.blocks, bias, strict=True):
            query, key, value = (
                part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                for part in block["in"](block["norm"](hidden)).chunk(3, dim=-1)
            )
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=offsets)
            hidden = hidden + block["out"](mixed.transpose(1, 2).flatten(-2))
            hidden = hidden + block["mlp"](hidden)
        weights = mask[..., None].float()
        pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return self.head(pooled)[:, 0] * self.spread + self.mean


def batches(adapter: MoleculeAdapter, data: QM9DataModule, rows: Tensor) -> Any:
    molecules = data.molecules()
    for part in rows.split(BATCH):
        samples = molecules[part]["molecule"]
        yield adapter.prepare(samples), samples.y[:, 0]


def train_regressor(adapter: MoleculeAdapter, data: QM9DataModule, rows: Tensor, epochs: int) -> Regressor:
    torch.manual_seed(0)
    values = data.molecules().properties[rows, 0]
    regressor = Regressor(len(adapter.vocabulary))
    regressor.mean.copy_(values.mean())
    regressor.spread.copy_(values.std())
    optimizer = torch.optim.AdamW(regressor.parameters(), 2e-3, weight_decay=1e-4)
    total = epochs * -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total, pct_start=0.1)
    bar = tqdm(total=total, desc="train the regressor", unit="step")
    for _ in range(epochs):
        for prepared, target in batches(adapter, data, rows[torch.randperm(len(rows))]):
            loss = (regressor(prepared) - target).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(regressor.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update()
            bar.set_postfix(error=f"{float(loss):.3f}")
    return regressor.eval()


@torch.no_grad()
def error(predicted: Tensor, target: Tensor) -> float:
    return float((predicted - target).abs().mean())


@torch.no_grad()
def test_error(regressor: Regressor, adapter: MoleculeAdapter, data: QM9DataModule, rows: Tensor) -> float:
    found = [(regressor(prepared), target) for prepared, target in batches(adapter, data, rows)]
    return error(torch.cat([first for first, _ in found]), torch.cat([second for _, second in found]))


def measure(
    module: UniteModule, regressor: Regressor, sizes: list[int], targets: Tensor, asked: dict[str, Any]
) -> tuple[dict[str, float], Tensor, Tensor]:
    adapter = module.adapters["molecule"]
    assert isinstance(adapter, MoleculeAdapter)
    made = module.generate("molecule", len(sizes), sizes=sizes, seed=0, show_progress=True, **asked)
    with torch.no_grad():
        predicted = torch.cat([regressor(adapter.prepare(made[i : i + BATCH])) for i in range(0, len(made), BATCH)])
    is_valid = torch.tensor(adapter.are_valid(made))
    return (
        {
            "mae": error(predicted, targets),
            "mae_valid": error(predicted[is_valid], targets[is_valid]),
            "validity": float(is_valid.float().mean()),
        },
        predicted,
        is_valid,
    )


def draw(targets: Tensor, reached: dict[str, tuple[Tensor, Tensor]], name: str, path: Path) -> None:
    figure, axes = plt.subplots(
        1, len(reached), figsize=(3.2 * len(reached), 3.6), sharex=True, sharey=True, layout="constrained"
    )
    low, high = float(targets.min()) - 0.5, float(targets.max()) + 0.5
    for axis, (title, (predicted, is_valid)) in zip(axes, reached.items(), strict=True):
        axis.plot([low, high], [low, high], color="0.6", linewidth=1)
        axis.scatter(targets[~is_valid], predicted[~is_valid], s=5, color="0.75", label="invalid")
        axis.scatter(targets[is_valid], predicted[is_valid], s=5, color="tab:blue", label="valid")
        axis.set(title=title, xlabel=f"{name} asked for", xlim=(low, high), ylim=(low, high), aspect="equal")
    axes[0].set_ylabel(f"{name} reached, by the regressor")
    axes[0].legend(loc="upper left", markerscale=2, frameon=False)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run of configs/qm9_gap.yaml, or of another property of QM9")
    parser.add_argument("--root", default="data/qm9")
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0, 4.0])
    parser.add_argument("--epochs", type=int, default=8, help="of the regressor")
    parser.add_argument("--output", type=Path, default=Path("conditions"))
    options = parser.parse_args()
    module = UniteModule.load_from_checkpoint(options.run, map_location="cpu").eval()
    adapter = module.adapters["molecule"]
    assert isinstance(adapter, MoleculeAdapter)
    (name,) = adapter.properties
    data = QM9DataModule(options.root, hydrogens=adapter.hydrogens, properties=[name])
    data.setup()
    own, other = data.rows("train").split([NUM_TRAIN, len(data.rows("train")) - NUM_TRAIN])
    options.output.mkdir(parents=True, exist_ok=True)
    regressor = train_regressor(adapter, data, other, options.epochs)

    values, sizes = data.molecules().properties[:, 0], data.table().num_atoms
    asked = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(0))[: options.num_samples]]
    targets = values[asked]
    medians = torch.stack([values[own][sizes[own] == size].median().nan_to_num() for size in range(10)])
    results: dict[str, Any] = {
        "property": name,
        "num_samples": options.num_samples,
        "regressor_test": {"mae": test_error(regressor, adapter, data, data.rows("test"))},
        "random": {"mae": error(values[asked[torch.randperm(len(asked))]], targets)},
        "size_only": {"mae": error(medians[sizes[asked]], targets)},
    }
    reached = {}
    runs: dict[str, dict[str, Any]] = {"no target": {}}
    runs |= {
        f"guidance {scale:g}": {"targets": {name: targets.tolist()}, "guidance_scale": scale}
        for scale in options.scales
    }
    for title, condition in runs.items():
        found, predicted, is_valid = measure(module, regressor, sizes[asked].tolist(), targets, condition)
        results[title], reached[title] = found, (predicted, is_valid)
        print(title, found, flush=True)
    draw(targets, reached, name, options.output / "conditions.png")
    (options.output / "conditions.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"{'':<16}{'MAE':>8}{'of valid':>10}{'validity':>10}")
    for title, found in results.items():
        if isinstance(found, dict):
            cells = [f"{found['mae']:8.3f}"]
            cells += [f"{found['mae_valid']:10.3f}{found['validity']:10.1%}"] if "validity" in found else []
            print(f"{title:<16}{''.join(cells)}")
    print(f"wrote {options.output / 'conditions.json'}, conditions.png")


if __name__ == "__main__":
    main()
