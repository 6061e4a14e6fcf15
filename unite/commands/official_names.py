"""Names of the weights in the authors' checkpoints, and what they are called here."""

from unite.errors import UserError
from unite.modalities.image.adapter import ImageAdapter
from unite.module import UniteModule

MODALITY = "image"

ENCODER_NAMES = {
    "encoder.up_sample.weight": "latent_in.weight",
    "encoder.up_sample.bias": "latent_in.bias",
    "encoder.t_embedder.W": "time_embedding.frequencies",
    "encoder.t_embedder.mlp.0.weight": "time_embedding.mlp.0.weight",
    "encoder.t_embedder.mlp.0.bias": "time_embedding.mlp.0.bias",
    "encoder.t_embedder.mlp.2.weight": "time_embedding.mlp.2.weight",
    "encoder.t_embedder.mlp.2.bias": "time_embedding.mlp.2.bias",
    "encoder.final_layer.norm_final.weight": "stream_norm.weight",
    "encoder.final_layer.adaLN_modulation.1.weight": "final_modulation.weight",
    "encoder.final_layer.adaLN_modulation.1.bias": "final_modulation.bias",
    "encoder.final_layer.linear.weight": "final_out.weight",
    "encoder.final_layer.linear.bias": "final_out.bias",
    "encoder_layer_norm.weight": "latent_norm.weight",
    "encoder_layer_norm.bias": "latent_norm.bias",
}
ENCODER_BLOCK_NAMES = {
    "norm1.weight": "attention_norm.weight",
    "norm2.weight": "mlp_norm.weight",
    "norm3.weight": "stream_norm.weight",
    "attn.qkv.weight": "attention.qkv.weight",
    "attn.qkv.bias": "attention.qkv.bias",
    "attn.q_norm.weight": "attention.query_norm.weight",
    "attn.k_norm.weight": "attention.key_norm.weight",
    "attn.proj.weight": "attention.out.weight",
    "attn.proj.bias": "attention.out.bias",
    "mlp.w12.weight": "mlp.gate_and_value.weight",
    "mlp.w12.bias": "mlp.gate_and_value.bias",
    "mlp.w3.weight": "mlp.out.weight",
    "mlp.w3.bias": "mlp.out.bias",
    "adaLN_modulation.1.weight": "modulation.weight",
    "adaLN_modulation.1.bias": "modulation.bias",
}
ADAPTER_NAMES = {
    "patch_embed.patch_embeddings.projection.weight": "patch_embedding.weight",
    "patch_embed.patch_embeddings.projection.bias": "patch_embedding.bias",
    "up_sample_decoder.weight": "decoder.embedding_in.weight",
    "up_sample_decoder.bias": "decoder.embedding_in.bias",
    "decoder.decoder_embed.weight": "decoder.latent_in.weight",
    "decoder.decoder_embed.bias": "decoder.latent_in.bias",
    "decoder.decoder_norm.weight": "decoder.norm.weight",
    "decoder.decoder_norm.bias": "decoder.norm.bias",
    "decoder.decoder_pred.weight": "pixel_head.weight",
    "decoder.decoder_pred.bias": "pixel_head.bias",
}
DECODER_BLOCK_NAMES = {
    "layernorm_before": "attention_norm",
    "qkv": "qkv",
    "attn_proj": "attention_out",
    "layernorm_after": "mlp_norm",
    "ffn_up": "mlp_in",
    "ffn_down": "mlp_out",
}


def official_name_table(module: UniteModule, modality: str = MODALITY) -> dict[str, str]:
    """Official name -> name in our state_dict, of all tensors that are the same in both.

    Raises:
        UserError: The model has no counterpart in the released code.
    """
    encoder, adapter = module.encoder, _image_adapter(module, modality)
    ours = dict.fromkeys(module.state_dict())
    table = {theirs: f"encoder.{name}" for theirs, name in ENCODER_NAMES.items()}
    table |= {
        f"encoder.blocks.{i}.{theirs}": f"encoder.blocks.{i}.{name}"
        for i in range(encoder.depth)
        for theirs, name in ENCODER_BLOCK_NAMES.items()
        if f"encoder.blocks.{i}.{name}" in ours  # the norms of queries and keys are optional
    }
    table |= {theirs: f"adapters.{modality}.{name}" for theirs, name in ADAPTER_NAMES.items()}
    table |= {
        f"decoder.decoder_layers.{i}.{theirs}.{kind}": f"adapters.{modality}.decoder.blocks.{i}.{name}.{kind}"
        for i in range(adapter.decoder_sizes.depth)
        for theirs, name in DECODER_BLOCK_NAMES.items()
        for kind in ("weight", "bias")
    }
    return table


def _image_adapter(module: UniteModule, modality: str) -> ImageAdapter:
    adapter = dict(module.adapters.items()).get(modality)
    if not isinstance(adapter, ImageAdapter):
        raise UserError(f"the released code is for images, and this model has no image adapter {modality!r}")
    for fits, setting in (
        (module.denoiser is module.encoder, "weight_sharing true"),
        (module.encoder.init_args.get("final_norm", "layer") == "layer", "final_norm layer"),
        (adapter.positions == "1d", "positions 1d"),
        (adapter.num_registers == adapter.num_patches, "one register per patch"),
        (adapter.embedding_width is not None, "an embedding_width"),
        (len(module.adapters) == 1, "one modality"),
    ):
        if not fits:
            raise UserError(f"the released code has no counterpart of this model: it is made for {setting}")
    return adapter
