"""Defines the tensor names in published files: the layouts of each part, and the marks of other models.

Ours are ComfyUI's names for the MMDiT, FLUX's for the autoencoder and `model.*` for the text encoder.
"""

from collections.abc import Collection, Iterator

from .rules import Layout, Rule, num_blocks

AFFINE = (".weight", ".bias")

# One name of the double blocks' SwiGLU marks the network: FLUX and its other relatives lack it.
FLUX_MARKER = "double_blocks.0.img_mlp.gate_proj.weight"
DIFFUSERS_MARKER = "transformer_blocks.0.ff_context.net.0.proj.weight"
TRANSFORMER_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "transformer.")


def transformer_layout(keys: Collection[str]) -> Layout | None:
    """Recognises an MMDiT's layout: authors, comfyui, diffusers, or None.

    Raises ValueError when the file holds the part under two prefixes.
    """
    found = [
        (p, marker)
        for marker in (FLUX_MARKER, DIFFUSERS_MARKER)
        for p in TRANSFORMER_PREFIXES
        if p + marker in keys
    ]
    if DIFFUSERS_MARKER in (marker for _, marker in found) and not any("x_embedder." in key for key in keys):
        return None  # Stable Diffusion 3 and others share the diffusers name
    if not found:
        return None
    if len(found) > 1:
        names = " and ".join(prefix + marker for prefix, marker in found[:2])
        raise ValueError(f"the file holds the model twice, as {names}; keep one of them")
    prefix, marker = found[0]
    bare = [key[len(prefix) :] for key in keys if key.startswith(prefix)]
    if marker == DIFFUSERS_MARKER:
        depth, depth_single = (
            num_blocks(bare, name) for name in ("transformer_blocks", "single_transformer_blocks")
        )
        return Layout("diffusers", prefix, tuple(diffusers_transformer_rules(depth, depth_single)))
    text = "semantic_txt" if any(key.startswith("semantic_txt_") for key in bare) else "txt"
    norm = "scale" if any(key.endswith("query_norm.scale") for key in bare) else "weight"
    depth, depth_single = num_blocks(bare, "double_blocks"), num_blocks(bare, "single_blocks")
    rules = tuple(flux_transformer_rules(depth, depth_single, text, norm))
    return Layout("comfyui" if text == "txt" else "authors", prefix, rules)


def flux_transformer_rules(depth: int, depth_single: int, text: str, norm: str = "weight") -> Iterator[Rule]:
    """Yields the rules of the authors' names (`text` = semantic_txt) and of ComfyUI's (txt).

    `norm` is the file's name of an RMSNorm's weight.
    """
    yield from _affine("img_in", "time_in.in_layer", "time_in.out_layer", (f"{text}_in", "txt_in"))
    yield from _affine("final_layer.linear", "final_layer.adaLN_modulation.1")
    norms = {f"{text}_norm": "txt_norm"}
    for i in range(depth):
        for block in (f"double_blocks.{i}.img", f"double_blocks.{i}.txt"):
            yield from _affine(f"{block}_mod.lin", f"{block}_attn.qkv", f"{block}_attn.proj")
            yield from _affine(*(f"{block}_mlp.{name}_proj" for name in ("gate", "up", "down")))
            norms |= {name: name for name in (f"{block}_attn.norm.query_norm", f"{block}_attn.norm.key_norm")}
    for block in (f"single_blocks.{i}" for i in range(depth_single)):
        yield from _affine(f"{block}.modulation.lin", f"{block}.linear1", f"{block}.linear2")
        norms |= {name: name for name in (f"{block}.norm.query_norm", f"{block}.norm.key_norm")}
    for theirs, ours in norms.items():
        yield Rule((f"{theirs}.{norm}",), (f"{ours}.weight",))


def diffusers_transformer_rules(
    depth: int, depth_single: int, single_rows: tuple[int, ...] = ()
) -> Iterator[Rule]:
    """Yields the rules of diffusers' names.

    `single_rows`: the rows of to_q, to_k, to_v and proj_mlp of a single block, for writing.
    """
    yield from _affine(
        ("x_embedder", "img_in"), ("context_embedder", "txt_in"), ("proj_out", "final_layer.linear")
    )
    for i, layer in enumerate(("in_layer", "out_layer"), start=1):
        yield from _affine((f"timestep_embedder.linear_{i}", f"time_in.{layer}"))
    yield Rule(("context_embedder_norm.weight",), ("txt_norm.weight",))
    for end in AFFINE:  # diffusers' rows are [scale, shift], FLUX's [shift, scale]
        yield Rule((f"norm_out.linear{end}",), (f"final_layer.adaLN_modulation.1{end}",), swapped=True)
    for i in range(depth):
        yield from _diffusers_double_rules(f"transformer_blocks.{i}", f"double_blocks.{i}")
    for i in range(depth_single):
        yield from _diffusers_single_rules(
            f"single_transformer_blocks.{i}", f"single_blocks.{i}", single_rows
        )


def _diffusers_double_rules(theirs: str, ours: str) -> Iterator[Rule]:
    img_names = ("norm1", ("to_q", "to_k", "to_v"), "to_out.0", ("norm_q", "norm_k"), "ff")
    txt_qkv = ("add_q_proj", "add_k_proj", "add_v_proj")
    txt_names = ("norm1_context", txt_qkv, "to_add_out", ("norm_added_q", "norm_added_k"), "ff_context")
    for stream, (norm, qkv, out, (norm_q, norm_k), ff) in (("img", img_names), ("txt", txt_names)):
        mlp, attn = f"{ours}.{stream}_mlp", f"{ours}.{stream}_attn"
        yield from _affine((f"{theirs}.{norm}.linear", f"{ours}.{stream}_mod.lin"))
        yield from _affine(
            (f"{theirs}.attn.{out}", f"{attn}.proj"), (f"{theirs}.{ff}.net.2", f"{mlp}.down_proj")
        )
        yield Rule((f"{theirs}.attn.{norm_q}.weight",), (f"{attn}.norm.query_norm.weight",))
        yield Rule((f"{theirs}.attn.{norm_k}.weight",), (f"{attn}.norm.key_norm.weight",))
        for end in AFFINE:
            yield Rule(tuple(f"{theirs}.attn.{name}{end}" for name in qkv), (f"{attn}.qkv{end}",))
            yield Rule((f"{theirs}.{ff}.net.0.proj{end}",), (f"{mlp}.up_proj{end}", f"{mlp}.gate_proj{end}"))


def _diffusers_single_rules(theirs: str, ours: str, source_rows: tuple[int, ...]) -> Iterator[Rule]:
    yield from _affine(
        (f"{theirs}.norm.linear", f"{ours}.modulation.lin"), (f"{theirs}.proj_out", f"{ours}.linear2")
    )
    yield Rule((f"{theirs}.attn.norm_q.weight",), (f"{ours}.norm.query_norm.weight",))
    yield Rule((f"{theirs}.attn.norm_k.weight",), (f"{ours}.norm.key_norm.weight",))
    for end in AFFINE:
        sources = (
            *(f"{theirs}.attn.{name}{end}" for name in ("to_q", "to_k", "to_v")),
            f"{theirs}.proj_mlp{end}",
        )
        yield Rule(sources, (f"{ours}.linear1{end}",), source_rows)


TEXT_ENCODER_PREFIXES = {"authors": "llm.model.", "comfyui": "model.", "diffusers": ""}

# The names of a Qwen3 block's layers in llama.cpp.
LLAMA_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def text_encoder_layout(keys: Collection[str]) -> Layout | None:
    """Recognises a language model's layout: authors (Ovis2.5-2B), comfyui, diffusers, llama.cpp or None."""
    for name, prefix in TEXT_ENCODER_PREFIXES.items():
        if f"{prefix}layers.0.self_attn.q_norm.weight" in keys:
            return Layout(name, prefix, tuple(text_encoder_rules(num_blocks(keys, f"{prefix}layers"))))
    if "blk.0.attn_q_norm.weight" in keys:
        return Layout("llama.cpp", "", tuple(llama_rules(num_blocks(keys, "blk"))))
    return None


def llama_rules(num_layers: int) -> Iterator[Rule]:
    """Yields the rules of llama.cpp's names."""
    yield Rule(("token_embd.weight",), ("model.embed_tokens.weight",))
    yield Rule(("output_norm.weight",), ("model.norm.weight",))
    for i in range(num_layers):
        for theirs, ours in LLAMA_NAMES.items():
            yield Rule((f"blk.{i}.{theirs}.weight",), (f"model.layers.{i}.{ours}.weight",))


def text_encoder_rules(num_layers: int) -> Iterator[Rule]:
    """Yields the rules of transformers' names, without their prefix."""
    yield from (Rule((key,), (f"model.{key}",)) for key in ("embed_tokens.weight", "norm.weight"))
    attention = (f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"))
    mlp = (f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj"))
    names = (*attention, *mlp, "input_layernorm", "post_attention_layernorm")
    for i in range(num_layers):
        yield from (
            Rule((f"layers.{i}.{name}.weight",), (f"model.layers.{i}.{name}.weight",)) for name in names
        )


def autoencoder_layout(keys: Collection[str]) -> Layout | None:
    """Recognises an autoencoder's layout: flux (the authors' and ComfyUI's file), diffusers, or None."""
    if "decoder.up.0.block.0.conv1.weight" in keys:
        sizes = num_blocks(keys, "decoder.up"), num_blocks(keys, "encoder.down.0.block")
        return Layout("flux", "", tuple(autoencoder_rules(*sizes, diffusers=False)))
    if "decoder.up_blocks.0.resnets.0.conv1.weight" in keys:
        sizes = num_blocks(keys, "decoder.up_blocks"), num_blocks(keys, "encoder.down_blocks.0.resnets")
        return Layout("diffusers", "", tuple(autoencoder_rules(*sizes, diffusers=True)))
    return None


def autoencoder_rules(num_levels: int, num_res_blocks: int, diffusers: bool) -> Iterator[Rule]:
    """Yields the rules of diffusers' names, or of FLUX's, which are ours."""
    sides = (
        ("encoder", "down", "downsample", num_res_blocks),
        ("decoder", "up", "upsample", num_res_blocks + 1),
    )
    for side, direction, resample, num_in_level in sides:
        layers = {f"{side}.conv_in": f"{side}.conv_in", f"{side}.conv_norm_out": f"{side}.norm_out"}
        layers |= {
            f"{side}.conv_out": f"{side}.conv_out",
            f"{side}.mid_block.attentions.0.group_norm": f"{side}.mid.attn_1.norm",
        }
        blocks = {f"{side}.mid_block.resnets.{i}": f"{side}.mid.block_{i + 1}" for i in range(2)}
        for level in range(num_levels):
            theirs = f"{side}.{direction}_blocks.{level}"
            # Theirs are in the order of running; ours begin with the finest, which the decoder runs last.
            ours = f"{side}.{direction}.{level if side == 'encoder' else num_levels - 1 - level}"
            blocks |= {f"{theirs}.resnets.{i}": f"{ours}.block.{i}" for i in range(num_in_level)}
            if level < num_levels - 1:
                layers[f"{theirs}.{resample}rs.0.conv"] = f"{ours}.{resample}.conv"
        for theirs, ours in blocks.items():
            layers |= {f"{theirs}.{name}": f"{ours}.{name}" for name in ("norm1", "conv1", "norm2", "conv2")}
            for end in AFFINE:
                shortcut = f"{ours}.nin_shortcut{end}"
                yield Rule(
                    (f"{theirs}.conv_shortcut{end}" if diffusers else shortcut,), (shortcut,), optional=True
                )
        for theirs, ours in layers.items():
            yield from _affine((theirs if diffusers else ours, ours))
        for theirs, ours in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
            target = f"{side}.mid.attn_1.{ours}"
            source = f"{side}.mid_block.attentions.0.{theirs}" if diffusers else target
            yield Rule((f"{source}.weight",), (f"{target}.weight",), linear=diffusers)
            yield Rule((f"{source}.bias",), (f"{target}.bias",))


def _affine(*layers: str | tuple[str, str]) -> Iterator[Rule]:
    """Yields rules for weight and bias of each layer, which is one name or (theirs, ours)."""
    for layer in layers:
        theirs, ours = (layer, layer) if isinstance(layer, str) else layer
        for end in AFFINE:
            yield Rule((theirs + end,), (ours + end,))


# Other models, by names that no other kind of file has; the first match counts.
SIGNATURES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("a LoRA", (".lora_A.", ".lora_down.", ".lora_up.", ".lokr_w", ".hada_w", ".dora_scale")),
    ("an Ovis-Image diffusion model", (FLUX_MARKER, "context_embedder_norm.")),
    ("FLUX.2", ("double_stream_modulation_img.",)),
    ("Chroma", ("distilled_guidance_layer.",)),
    ("HunyuanVideo", ("txt_in.individual_token_refiner.",)),
    ("Ovis-U1", ("yak.", "visual_generator.")),
    ("FLUX.1", ("double_blocks.0.img_mlp.0.", "single_transformer_blocks.0.")),
    ("Qwen-Image", ("transformer_blocks.0.img_mod.1.",)),
    ("Stable Diffusion 3", ("joint_blocks.0.", "transformer_blocks.0.ff_context.")),
    ("Lumina 2 or Z-Image", ("cap_embedder.", "noise_refiner.")),
    ("Wan", ("blocks.0.cross_attn.",)),
    ("Stable Diffusion 1, 2 or XL", ("input_blocks.0.0.", "down_blocks.0.attentions.0.")),
    ("a T5 text encoder", ("encoder.block.0.layer.0.SelfAttention.", "shared.weight")),
    ("a CLIP text encoder", ("text_model.encoder.",)),
    ("an Ovis2.5 or Qwen3 text encoder", ("layers.0.self_attn.q_norm.", "blk.0.attn_q_norm.")),
    ("a Llama or Qwen2 text encoder", ("layers.0.self_attn.q_proj.", "blk.0.attn_q.")),
    ("a VAE", ("decoder.up.", "decoder.up_blocks.", "decoder.conv_in.")),
)  # fmt: skip


def looks_like(keys: Collection[str]) -> str:
    """Names the kind of model that a file holds, for error messages."""
    for name, marks in SIGNATURES:
        if any(mark in key for key in keys for mark in marks):
            return name
    return "no model known here"
