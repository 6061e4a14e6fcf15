"""Layers only: networks that know no data."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from unite.nn.decoder import LatentDecoder as LatentDecoder
    from unite.nn.generative_encoder import GenerativeEncoder as GenerativeEncoder
    from unite.nn.generative_encoder import Tokens as Tokens

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "generative_encoder": ["GenerativeEncoder", "Tokens"],
        "decoder": ["LatentDecoder"],
    },
)
