"""What real data say of a round of samples: the shares of their traits, and the conditions that go together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unite.modalities.base import ModalityAdapter, Template, Traits


@dataclass(frozen=True)
class Reference:
    """Real samples as tuning needs them.

    Attributes:
        traits: Of those samples that have some.
        template: Sizes and conditions of all, on the CPU.
    """

    traits: list[Traits]
    template: Template

    def draw(self, num_samples: int, hidden_share: float, generator: torch.Generator) -> Template:
        """Sizes and conditions of real samples, so that a caption comes with a size that it has in the data.

        Args:
            num_samples: How many, drawn with replacement.
            hidden_share: Share of the samples whose properties and captions are hidden, as in training.
            generator: CPU generator of the draws.
        """
        drawn = self.template[torch.randint(len(self.template), (num_samples,), generator=generator)]
        hidden = torch.rand(num_samples, generator=generator) < hidden_share
        properties, captions = drawn.properties, drawn.captions
        if properties is not None:
            properties = properties.masked_fill(hidden[:, None], torch.nan)
        if captions is not None:
            captions = tuple(None if hide else text for text, hide in zip(captions, hidden.tolist(), strict=True))
        return replace(drawn, properties=properties, captions=captions)


def read_reference(adapter: ModalityAdapter, batches: Iterable[Any], most: int) -> Reference:
    """Read batches until there are ``most`` samples with traits.

    Args:
        adapter: Adapter of the modality, in evaluation mode.
        batches: Batches of its samples, on its device.
        most: Number of samples.
    """
    traits: list[Traits] = []
    templates: list[Template] = []
    for samples in batches:
        prepared = adapter.prepare(samples)
        traits += [trait for trait in adapter.traits(adapter.originals(prepared)) if trait is not None]
        templates.append(adapter.template(prepared))
        if len(traits) >= most:
            break
    sizes = torch.cat([template.sizes.cpu() for template in templates])
    captions = [template.captions for template in templates if template.captions is not None]
    return Reference(
        traits,
        Template(
            sizes,
            _joined([template.condition for template in templates]),
            _joined([template.properties for template in templates]),
            tuple(text for texts in captions for text in texts) if len(captions) == len(templates) else None,
        ),
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Rows of all parts on the CPU; None if a part has none."""
    found = [part.cpu() for part in parts if part is not None]
    return torch.cat(found) if len(found) == len(parts) else None
