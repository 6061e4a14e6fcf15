"""The pipeline of an image model of UNITE (arXiv:2603.22283) for diffusers."""

from collections.abc import Sequence
from typing import Any

from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image


class UnitePipeline(DiffusionPipeline):
    """Images by class, from noise.

    Args:
        model: The networks, a ``UniteImageModel``.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.register_modules(model=model)

    def __call__(
        self,
        class_labels: Sequence[int] | int | None = None,
        num_images: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        solver: str | None = None,
        seed: int = 0,
        batch_size: int = 500,
        output_type: str = "pil",
    ) -> Any:
        """Generate images; the same pixels as ``unite sample --labels ... --seed ...``.

        Args:
            class_labels: Classes, cycled; None for all of them in turn.
            num_images: How many; None for one of each of ``class_labels``, or of each class.
            num_inference_steps: Steps of the solver; None for the model's own, as in what follows.
            guidance_scale: Classifier-free guidance; 1 is none.
            solver: ``euler``, ``midpoint``, ``heun``, ``rk4``, ``dopri5`` or ``ancestral``.
            seed: Of the noise. An image depends on it and on its place alone.
            batch_size: Images at a time.
            output_type: ``pil`` for pictures, ``np`` for arrays (H, W, channels) of bytes.

        Returns:
            An ``ImagePipelineOutput`` with ``images``.
        """
        given = [class_labels] if isinstance(class_labels, int) else list(class_labels or [])
        labels = given or list(range(max(self.model.num_classes, 1)))
        num = len(labels) if num_images is None else num_images
        images = self.model.sample(
            [labels[index % len(labels)] for index in range(num)],
            seed,
            batch_size,
            num_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            solver=solver,
        )
        if output_type == "pil":
            images = [Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image) for image in images]
        return ImagePipelineOutput(images=images)
