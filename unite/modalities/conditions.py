"""What samples can be conditioned on: a class, properties, a caption, sizes. What adapters of all modalities share."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from unite.errors import UserError, require
from unite.modalities.template import Template, Wanted
from unite.nn.conditions import ConditionEmbedding
from unite.nn.generative_encoder import Tokens
from unite.nn.text import TextEncoder


class ConditionedAdapter(nn.Module):
    """Embeds the conditions of samples, and makes templates of what a user asks for.

    The condition vector is the embedding of the class, or of none, plus that of each property that is known
    (:class:`~unite.nn.conditions.ConditionEmbedding`). The null condition is that of no class alone. A caption gives
    tokens that the Generative Encoder reads in context, and adds their mean (:class:`~unite.nn.text.TextEncoder`).
    """

    num_classes: int = 0
    """Number of classes that samples can be conditioned on."""

    properties: Sequence[str] = ()
    """Names of the properties that samples can be conditioned on, in the order of the templates' columns."""

    text: TextEncoder | None
    """What reads captions; None for a model without text."""

    condition_dropout: float = 0.1
    """Share of training samples whose class is hidden, so that guidance has an unconditional prediction to use.

    Each property, and the caption, is hidden as often, and as often again all of a sample at once.
    """

    class_names: list[str] | None = None
    """Names of the classes, if the training data has some; checkpoints keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.text = None  # not of the class: torch would find that before a layer of this name

    def build_conditions(self, width: int) -> None:
        """Make the layers.

        Args:
            width: Channels D of the encoder.
        """
        # The last row is the null condition, which an unconditional modality always uses.
        self.condition_embedding = nn.Embedding(self.num_classes + 1, width)
        nn.init.normal_(self.condition_embedding.weight, std=0.02)
        self.property_embedding: ConditionEmbedding | None = None  # without properties, weights have no names for it
        if columns := self.condition_columns():
            self.property_embedding = ConditionEmbedding(columns, width)
        if self.text is not None:
            self.text.build(width)

    def condition_columns(self) -> dict[str, int]:
        """Numbers of columns of the continuous conditions by name, in their order."""
        return dict.fromkeys(self.properties, 1)

    @property
    def is_conditional(self) -> bool:
        """Whether samples have anything that guidance could strengthen."""
        return self.num_classes > 0 or bool(self.condition_columns()) or self.text is not None

    def fit_properties(self, datamodule: Any) -> None:
        """Note the statistics of the training data's properties: the columns that its ``training_properties()`` gives.

        Raises:
            UserError: The data has other properties than the model, or in another order.
        """
        if not self.properties or self.property_embedding is None:
            return
        known = list(getattr(datamodule, "property_names", ()))
        require(
            known == list(self.properties),
            f"properties is {list(self.properties)} in the adapter, but the data has {known or 'none'}: set both to "
            "the same (init_args.properties of the datamodule and of model.adapters.NAME)",
        )
        self.property_embedding.fit_statistics(datamodule.training_properties())

    def known_properties(self, values: Tensor | None) -> Tensor | None:
        """Properties of samples (B, P) as a template has them; None where the model or the samples have none.

        Raises:
            UserError: They are more or fewer than the model was built for.
        """
        if not self.properties or values is None:
            return None
        require(
            values.shape[1] == len(self.properties),
            f"samples with {values.shape[1]} properties, but this model was built for {', '.join(self.properties)}: "
            "see properties of the datamodule and of the adapter",
        )
        return values

    def fit_text(self, datamodule: Any) -> None:
        """Let the text encoder, if there is one, see the captions that ``training_captions()`` of the data gives.

        Raises:
            UserError: The data has none.
        """
        if self.text is not None and datamodule is not None:
            captions = getattr(datamodule, "training_captions", lambda: None)()
            if captions is None:
                raise UserError(
                    "text is set in the adapter, but the data has no captions: set data.init_args.captions, or leave "
                    "out model.adapters.NAME.init_args.text"
                )
            known = (caption for caption in captions if caption)
            first = next(known, None)
            if first is None:
                raise UserError("text is set in the adapter, but no sample of the training data has a caption")
            self.text.learn_from(chain([first], known))

    def known_captions(self, captions: Sequence[str | None] | None) -> tuple[str | None, ...] | None:
        """Captions of samples as a template has them; None where the model or the samples have none."""
        return None if self.text is None or captions is None else tuple(captions)

    # ------------------------------------------------------------------ embedding

    def null_condition(self) -> Tensor:
        """Embedding of "no condition", shape (1, D)."""
        return self.condition_embedding.weight[-1:]

    def has_condition(self, template: Template) -> bool:
        """Whether the samples of a template have a condition other than the null condition."""
        return (template.condition is not None and self.num_classes > 0) or template.properties is not None

    def condition(self, template: Template) -> Tensor:
        """Embedding (B, D) of the samples' conditions, or (1, D) if there are none; in training some are hidden.

        Raises:
            UserError: A class is outside the range.
        """
        embedded = self.null_condition()
        if template.condition is not None and self.num_classes > 0:
            labels = template.condition
            if self.training:
                hidden = torch.rand(labels.shape, device=labels.device) < self.condition_dropout
                labels = labels.masked_fill(hidden, self.num_classes)
            embedded = self.condition_embedding(labels)
        if template.properties is not None and self.property_embedding is not None:
            dropout = self.condition_dropout if self.training else 0.0
            embedded = embedded + self.property_embedding(template.properties, dropout)
        return embedded

    def conditions(self, template: Template, copies: int = 1) -> tuple[Tensor, Tokens | None]:
        """All that the denoiser is told of the samples: vectors, and tokens to read in context if there are captions.

        Args:
            template: What is known of the samples.
            copies: How often each sample is denoised; in training something else is hidden each time.

        Returns:
            Vectors (copies * B, D), copy by copy, or (1, D) if there are no conditions; tokens (copies * B, L, D).

        Raises:
            UserError: A class is outside the range.
        """
        vectors = self.null_condition()
        if self.has_condition(template):
            vectors = torch.cat([self.condition(template) for _ in range(copies)])
        if self.text is None or template.captions is None:
            return vectors, None
        context = self.text(template.captions)
        assert context.mask is not None
        values, mask = context.values.repeat(copies, 1, 1), context.mask.repeat(copies, 1)
        if self.training:
            # Without all of a sample's conditions at once now and then, guidance would have nothing to compare with.
            kept = torch.rand(2, len(mask), 1, device=mask.device) >= self.condition_dropout
            mask = mask & kept.all(dim=0)
            vectors = torch.where(kept[1], vectors, self.null_condition())
        context = replace(context, values=values, mask=mask)
        return vectors + self.text.pooled(context), context

    # ------------------------------------------------------------------ what is asked for

    @abstractmethod
    def draw_template(
        self, num_samples: int, labels: Sequence[int] | None = None, generator: torch.Generator | None = None
    ) -> Template:
        """Sizes and conditions of samples to generate, drawn as in the training data.

        Args:
            num_samples: How many.
            labels: Classes to generate, cycled; None draws them evenly.
            generator: CPU generator of all draws. More samples only add to those that fewer would give.
        """

    def wanted_template(self, num_samples: int, wanted: Wanted, generator: torch.Generator | None = None) -> Template:
        """Sizes and conditions of samples to generate: those that are asked for, all others as :meth:`draw_template`.

        Args:
            num_samples: How many.
            wanted: What is asked for.
            generator: CPU generator of all draws. More samples only add to those that fewer would give.

        Raises:
            UserError: The model knows no such class, size or property.
        """
        require(wanted.fix is not None or wanted.fix_atoms is None, "fix_atoms is given, but not fix, the file")
        template = self.draw_template(num_samples, wanted.labels, generator)
        require(
            wanted.composition is None or "composition" in self.condition_columns(),
            f"composition {wanted.composition} asked for, but this model was trained without compositions",
        )
        sizes, properties = template.sizes, template.properties
        if wanted.sizes is not None:
            sizes = self._cycled_sizes(num_samples, wanted.sizes)
        if wanted.targets:
            properties = self._target_columns(num_samples, wanted.targets)
        captions = None if wanted.prompt is None else self._cycled_prompts(num_samples, wanted.prompt)
        template = Template(sizes, template.condition, properties, captions)
        return template if wanted.fix is None else self.with_part(template, wanted, generator)

    def with_part(self, template: Template, wanted: Wanted, generator: torch.Generator | None) -> Template:
        """The template of samples that are given a part of a molecule.

        Args:
            template: Sizes and conditions of the samples.
            wanted: What is asked for, with ``fix``.
            generator: CPU generator of all draws.

        Raises:
            UserError: This modality or this model takes no part, or not that one.
        """
        raise UserError(f"fix is given, but {type(self).__name__} keeps no parts: molecules with positions do")

    def drawn_labels(self, num_samples: int, labels: Sequence[int] | None, seed: int) -> list[int] | None:
        """Class of each sample that :meth:`draw_template` draws with a seed; None without classes."""
        if self.num_classes == 0:
            return None
        condition = self.draw_template(num_samples, labels, torch.Generator().manual_seed(seed)).condition
        return None if condition is None else [int(label) for label in condition]

    def require_guidable(self, scale: float) -> None:
        """Refuse guidance by a scale other than 1 with a :class:`UserError` where there is nothing to strengthen."""
        lacking = "trained without classes, properties or text: leave it at 1"
        require(scale == 1 or self.is_conditional, f"guidance_scale is {scale}, but this model was {lacking}")

    def cycle_labels(self, num_samples: int, labels: Sequence[int] | None) -> Tensor | None:
        """Classes (num_samples,) of samples to generate: ``labels`` in turn, or all classes in turn.

        Raises:
            UserError: A label is outside the range, or the modality has no classes.
        """
        if self.num_classes == 0:
            if labels:
                raise UserError(f"labels {list(labels)} asked for, but this model was trained without classes")
            return None
        chosen = list(range(self.num_classes)) if labels is None else list(labels)
        wrong = [label for label in chosen if not 0 <= label < self.num_classes]
        if wrong:
            raise UserError(f"label {wrong[0]} is outside 0 .. {self.num_classes - 1}")
        return _cycled(chosen, num_samples)

    def _cycled_sizes(self, num_samples: int, sizes: Sequence[int]) -> Tensor:
        """The sizes in turn, shape (num_samples,).

        Raises:
            UserError: The model has seen no such size, or all its samples are of one size.
        """
        counts: Tensor | None = getattr(self, "size_counts", None)
        require(counts is not None, f"sizes {list(sizes)} asked for, but {type(self).__name__} has samples of one size")
        assert counts is not None
        seen = counts.nonzero()[:, 0].tolist()
        require(bool(sizes), "sizes is empty; give at least one number")
        if unseen := [size for size in sizes if size not in seen]:
            raise UserError(f"sizes has {unseen[0]}, but the training data had {as_ranges(seen) or 'none at all'}")
        return _cycled(sizes, num_samples)

    def _cycled_prompts(self, num_samples: int, prompts: Sequence[str]) -> tuple[str, ...]:
        """The prompts in turn, num_samples of them.

        Raises:
            UserError: The model knows no text, or cannot read one of them to its end.
        """
        require(bool(prompts), "prompt is empty; give at least one text")
        require(self.text is not None, f"prompt {prompts[0]!r} given, but this model was trained without captions")
        assert self.text is not None
        for prompt in prompts:
            self.text.require_readable(prompt)
        return tuple(prompts[number % len(prompts)] for number in range(num_samples))

    def _target_columns(self, num_samples: int, targets: Mapping[str, float | Sequence[float]]) -> Tensor:
        """Columns of the templates of which only the targets are known, shape (num_samples, P).

        Raises:
            UserError: The model knows no such property, or a target is no number.
        """
        known = ", ".join(self.properties)
        embedding = self.property_embedding
        columns = torch.full((num_samples, sum(self.condition_columns().values())), torch.nan)
        for name, target in targets.items():
            require(
                name in self.properties and embedding is not None,
                f"targets has {name!r}, but this model was trained "
                + (f"with the properties {known}" if known else "without properties"),
            )
            assert embedding is not None
            values = _cycled([target] if isinstance(target, int | float) else list(target), num_samples).float()
            require(bool(values.isfinite().all()), f"targets has {name}={target}; it must be a finite number")
            columns[:, embedding.column(name)] = values
        return columns

    def unusual(self, wanted: Wanted) -> list[str]:
        """What the training data had nothing like, in a line each: targets outside the range that they were in."""
        told = []
        for name, target in (wanted.targets or {}).items():
            assert self.property_embedding is not None
            low, high = self.property_embedding.range_of(name)
            values = [target] if isinstance(target, int | float) else list(target)
            if low <= high and (outside := [value for value in values if value < low or value > high]):
                told.append(f"target {name}={outside[0]:.4g} lies outside the training data, {low:.4g} .. {high:.4g}")
        return told


def _cycled(values: Sequence[Any], num_samples: int) -> Tensor:
    return torch.tensor(list(values))[torch.arange(num_samples) % len(values)]


def as_ranges(numbers: Sequence[int]) -> str:
    """Ascending whole numbers in few words: ``1 .. 7, 9``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(low) if low == high else f"{low} .. {high}" for low, high in spans)
