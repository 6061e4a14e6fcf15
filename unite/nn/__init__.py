"""Layers only: networks that know no data."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from unite.nn.decoder import LatentDecoder as LatentDecoder
    from unite.nn.embedded_text import CaptionEmbedder as CaptionEmbedder
    from unite.nn.embedded_text import EmbeddedTextEncoder as EmbeddedTextEncoder
    from unite.nn.generative_encoder import GenerativeEncoder as GenerativeEncoder
    from unite.nn.generative_encoder import Tokens as Tokens
    from unite.nn.text import ByteTextEncoder as ByteTextEncoder
    from unite.nn.text import TextEncoder as TextEncoder

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "generative_encoder": ["GenerativeEncoder", "Tokens"],
        "decoder": ["LatentDecoder"],
        "text": ["ByteTextEncoder", "TextEncoder"],
        "embedded_text": ["CaptionEmbedder", "EmbeddedTextEncoder"],
    },
)
