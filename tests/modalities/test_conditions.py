"""What samples are conditioned on, and what may be asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.cases import awake, tiny_image_adapter
from tests.support.paths import TINY_CSV
from unite import UniteModule, UserError
from unite.modalities.molecule.adapter import MoleculeAdapter
from unite.modalities.molecule.data.qm9.datamodule import QM9DataModule
from unite.modalities.template import Wanted, read_sizes, read_targets
from unite.nn.generative_encoder import GenerativeEncoder

PROPERTIES = ["gap", "mu"]


def data_of(root: Path, properties: list[str] | None = None) -> QM9DataModule:
    data = QM9DataModule(str(root), 8, hydrogens="counted", csv_files=[str(TINY_CSV)], properties=properties)
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> QM9DataModule:
    return data_of(tmp_path_factory.mktemp("qm9"), PROPERTIES)


def make_module(**settings: Any) -> UniteModule:
    torch.manual_seed(0)
    encoder = GenerativeEncoder("XS", latent_channels=4, depth=2, width=32, num_heads=2)
    adapter = MoleculeAdapter(hydrogens="counted", max_atoms=9, decoder_depth=1, **settings)
    return awake(UniteModule(encoder, {"molecule": adapter}))


@pytest.fixture(scope="module")
def module(data: QM9DataModule) -> UniteModule:
    made = make_module(properties=PROPERTIES)
    made.adapters["molecule"].fit_statistics(data)
    return made


def test_properties_of_the_data_reach_the_flow_and_not_the_tokenizer(module: UniteModule, data: QM9DataModule) -> None:
    adapter = module.adapters["molecule"]
    samples = next(iter(data.val_dataloader()))["molecule"]
    template = adapter.template(adapter.prepare(samples))
    assert template.properties is not None
    assert torch.equal(template.properties, samples.y)
    assert not torch.equal(adapter.condition(template), adapter.null_condition().expand(len(template), -1))
    other = samples.clone()
    other.y = samples.y + 1.0

    def tokenized(batch: Any) -> torch.Tensor:
        return module.tokenize("molecule", batch, torch.Generator().manual_seed(0))

    assert torch.equal(tokenized(samples), tokenized(other))
    losses = []
    for batch in (samples, other):
        torch.manual_seed(0)
        losses.append(_flow_loss(module, batch))
    assert losses[0] != losses[1]


def _flow_loss(module: UniteModule, samples: Any) -> float:
    adapter = module.adapters["molecule"]
    template = adapter.template(adapter.prepare(samples))
    latents = torch.randn(len(template), int(template.sizes.max()), 4)
    with torch.no_grad(), module.evaluation():
        return float(module.flow_loss(adapter, latents, template, adapter.registers(template)))


def test_targets_change_samples_and_guidance_strengthens_them(module: UniteModule) -> None:
    def positions(**asked: Any) -> torch.Tensor:
        made = module.generate("molecule", 4, seed=0, num_steps=3, sizes=[4], **asked)
        return torch.stack([torch.from_numpy(molecule.positions) for molecule in made])

    free, low, high = positions(), positions(targets={"gap": 4.0}), positions(targets={"gap": 9.0})
    assert not torch.allclose(low, high)
    assert not torch.allclose(low, free)
    assert torch.equal(positions(targets={"gap": [4.0, 9.0]})[::2], low[::2])
    assert torch.equal(positions(targets={"gap": [4.0, 9.0]})[1::2], high[1::2])
    guided = positions(targets={"gap": 4.0}, guidance_scale=3.0)
    assert not torch.allclose(guided, low)
    assert torch.equal(positions(guidance_scale=3.0), free)  # there is nothing to strengthen


def test_weights_without_properties_have_the_names_they_had() -> None:
    names = set(make_module().state_dict())
    assert not any("property" in name for name in names)
    assert names < set(make_module(properties=["gap"]).state_dict())


def test_statistics_travel_with_the_weights(module: UniteModule) -> None:
    other = make_module(properties=PROPERTIES)
    other.load_state_dict(module.state_dict())
    wanted = Wanted(targets={"gap": 99.0, "mu": 1.0})
    (told,) = other.adapters["molecule"].unusual(wanted)
    assert told.startswith("target gap=99 lies outside the training data, ")


def test_sizes_are_cycled(module: UniteModule) -> None:
    made = module.generate("molecule", 5, seed=0, num_steps=1, sizes=[3, 9])
    assert [len(molecule.atomic_numbers) for molecule in made] == [3, 9, 3, 9, 3]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"targets": {"cv": 1.0}}, "targets has 'cv', but this model was trained with the properties gap, mu"),
        ({"targets": {"gap": float("nan")}}, "targets has gap=nan; it must be a finite number"),
        ({"sizes": [2, 40]}, "sizes has 40, but the training data had 1 .. 4, 7 .. 9"),
        ({"sizes": []}, "sizes is empty"),
    ],
)
def test_what_the_model_does_not_know_is_refused(module: UniteModule, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        module.generate("molecule", 2, **asked)


def test_other_models_say_why_they_refuse(data: QM9DataModule) -> None:
    plain = make_module()
    plain.adapters["molecule"].fit_statistics(data)
    with pytest.raises(UserError, match="targets has 'gap', but this model was trained without properties"):
        plain.generate("molecule", 2, targets={"gap": 5.0})
    with pytest.raises(UserError, match="trained without classes, properties or text: leave it at 1"):
        plain.generate("molecule", 2, guidance_scale=2.0)
    images = tiny_image_adapter(num_classes=4)
    images.build(32, 4)
    with pytest.raises(UserError, match=r"sizes \[5\] asked for, but ImageAdapter has samples of one size"):
        images.wanted_template(2, Wanted(sizes=[5]))


def test_data_must_have_the_properties_of_the_model(tmp_path: Path) -> None:
    made = make_module(properties=["gap"]).adapters["molecule"]
    with pytest.raises(UserError, match=r"properties is \['gap'\] in the adapter, but the data has none"):
        made.fit_statistics(data_of(tmp_path))
    with pytest.raises(UserError, match=r"data\.properties has 'weight'; QM9 has mu, alpha, homo, lumo, gap, cv"):
        QM9DataModule(str(tmp_path), properties=["weight"])


def test_sizes_and_targets_are_read_as_they_are_typed() -> None:
    assert read_sizes([9]) == [9]
    assert read_sizes(["7-9", 3]) == [7, 8, 9, 3]
    assert read_sizes(None) is None
    assert read_targets(None) is None
    assert read_targets(["gap=5.0", "mu=-2"]) == {"gap": 5.0, "mu": -2.0}
    for words in (["9-7"], ["0"], ["large"]):
        with pytest.raises(UserError, match="sizes has"):
            read_sizes(words)
    with pytest.raises(UserError, match="targets has 'gap'; it takes a name and a number"):
        read_targets(["gap"])
    with pytest.raises(UserError, match="targets has gap twice"):
        read_targets(["gap=1", "gap=2"])
