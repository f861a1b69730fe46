"""Stock nodes on our CLIP and CONDITIONING: encoding, areas and times, hooks, and what is refused."""

import dataclasses
from pathlib import Path

import pytest
import tiny_model
import torch
from safetensors.torch import load_file, save_file

stock = tiny_model.import_by_path("stock_table", Path(__file__).with_name("test_stock_table.py"))
add, distance, outcome = stock.add, stock.distance, stock.outcome
with_fixed_shift, with_model_node = stock.with_fixed_shift, stock.with_model_node

LORA = "stock.safetensors"
SECOND = "hooked.safetensors"


def random_pairs(prefix, state, generator):
    """A LoRA for every matrix of a network, in ComfyUI's names."""
    pairs = {}
    for key, weight in state.items():
        if weight.ndim == 2 and "embed" not in key:
            name = f"{prefix}{key.removesuffix('.weight')}"
            down = torch.randn(4, weight.shape[1], generator=generator)
            pairs[f"{name}.lora_A.weight"] = down / weight.shape[1] ** 0.5
            pairs[f"{name}.lora_B.weight"] = torch.randn(weight.shape[0], 4, generator=generator) / 4
    return pairs


@pytest.fixture(scope="module", autouse=True)
def files(server, tmp_path_factory):
    """A LoRA for our model and text encoder, and a checkpoint with another model."""
    models = server.base / "models"
    generator = torch.Generator().manual_seed(3)
    encoder = server.names["comfyui"]["text_encoder_name"]
    pairs = random_pairs("diffusion_model.", load_file(models / "diffusion_models" / stock.NATIVE), generator)
    pairs |= random_pairs("text_encoders.", load_file(models / "text_encoders" / encoder), generator)
    for folder in ("loras", "checkpoints", "controlnet"):
        (models / folder).mkdir(exist_ok=True)
    save_file(pairs, models / "loras" / LORA)
    other = tmp_path_factory.mktemp("hooked")
    name = tiny_model.write("comfyui", other, seed=1)["model_name"]
    state = load_file(other / "diffusion_models" / name)
    save_file(state, models / "diffusion_models" / SECOND)
    checkpoint = {f"model.diffusion_model.{key}": tensor for key, tensor in state.items()}
    save_file(checkpoint, models / "checkpoints" / SECOND)


POSITIVE = {"conditioning": ["2", 0]}
BOTH = {"conditioning_to": ["2", 0], "conditioning_from": ["3", 0]}
PROPERTIES = {"cond_NEW": ["2", 0], "strength": 0.5, "set_cond_area": "default", "timesteps": ["times", 0]}
CONDITIONING = {
    "ConditioningZeroOut": POSITIVE,
    "ConditioningAverage": {**BOTH, "conditioning_to_strength": 0.5},
    "ConditioningConcat": BOTH,
    "ConditioningCombine": {"conditioning_1": ["2", 0], "conditioning_2": ["3", 0]},
    "ConditioningSetTimestepRange": {**POSITIVE, "start": 0.3, "end": 1.0},
    "ConditioningSetArea": {**POSITIVE, "width": 64, "height": 64, "x": 0, "y": 0, "strength": 1.0},
    "ConditioningSetAreaPercentage": {
        **{**POSITIVE, "width": 0.5, "height": 0.5, "x": 0.25, "y": 0.25, "strength": 1.0}
    },
    "ConditioningSetMask": {**POSITIVE, "mask": ["half", 0], "strength": 1.0, "set_cond_area": "default"},
    "ConditioningSetProperties": {**PROPERTIES, "mask": ["half", 0]},
    "FluxGuidance": {**POSITIVE, "guidance": 3.5},
}


def with_positive(server, class_type, native=False):
    """The graph with a node on its positive, or None, and another prompt behind what a node limits."""
    workflow = with_fixed_shift(server, native)
    add(workflow, "half", "SolidMask", value=0.6, width=128, height=96)
    add(workflow, "times", "ConditioningTimestepsRange", start_percent=0.2, end_percent=0.9)
    positive = add(workflow, "changed", class_type, **CONDITIONING[class_type]) if class_type else ["2", 0]
    both = {"conditioning_1": ["other", 0], "conditioning_2": positive}
    workflow["5"]["inputs"]["positive"] = add(workflow, "whole", "ConditioningCombine", **both)
    return workflow


@pytest.mark.parametrize("class_type", CONDITIONING)
def test_conditioning_nodes(server, outcome, class_type):
    ours, native = (server.latent(with_positive(server, class_type, n), "5") for n in (False, True))
    plain = server.latent(with_positive(server, None), "5")
    if class_type == "FluxGuidance":  # the model has no such input
        outcome.equals(class_type, "the graph without it", ours, plain, 0, "harmless: changes nothing")
    else:
        outcome.equals(class_type, stock.ON_NATIVE, ours, native, 1e-4, unlike=plain)


def test_stock_text_encode_is_ours_on_plain_text(server, outcome):
    workflow = with_model_node(server)
    expected = server.latent(workflow, "5")
    for node in ("2", "3"):
        workflow[node]["class_type"] = "CLIPTextEncode"
    outcome.equals("CLIPTextEncode", "Ovis-Image Text Encode", server.latent(workflow, "5"), expected, 0)


def test_comfyuis_own_clip_in_our_sampler(pack, comfyui, model, monkeypatch, tmp_path, outcome):
    """In this process, with ComfyUI's class for the encoder made small: it knows the full size alone."""
    import comfy.samplers
    import comfy.sd
    import comfy.text_encoders.llama
    import folder_paths

    small, full = tiny_model.TEXT_ENCODER, comfy.text_encoders.llama.Ovis25_2BConfig
    sizes = {
        **{"hidden_size": small.hidden_size, "intermediate_size": small.intermediate_size},
        **{"num_hidden_layers": small.num_layers, "num_attention_heads": small.num_heads},
        "num_key_value_heads": small.num_kv_heads,
    }
    fields = [(name, int, dataclasses.field(default=size)) for name, size in sizes.items()]
    constants = {"head_dim": small.head_dim}
    config = dataclasses.make_dataclass("Small", fields, bases=(full,), namespace=constants)
    monkeypatch.setattr(comfy.text_encoders.llama, "Ovis25_2BConfig", config)
    monkeypatch.setattr(comfy.sd, "detect_te_model", lambda state: comfy.sd.TEModel.QWEN3_2B)
    name = tiny_model.write("comfyui", tmp_path)["text_encoder_name"]
    folder = tmp_path / "text_encoders"
    places = {"text_encoders": ([str(folder)], {".safetensors"})}
    monkeypatch.setattr(
        folder_paths, "folder_names_and_paths", {**folder_paths.folder_names_and_paths, **places}
    )
    ours = pack("nodes.adapters.loading.text_encoder").load_text_encoder(folder / name)
    (native,) = comfyui.CLIPLoader().load_clip(name, "ovis")
    sigmas = pack("ovis_core.sampling").flow_sigmas(4, 8 * 12)
    noise = torch.randn(1, 16, 16, 24, generator=torch.Generator().manual_seed(3))
    results = []
    for clip in (native, ours):
        pair = [
            clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ('A poster: "双11 $9.99"', "")
        ]
        guider = pack("nodes.adapters.sampling.guidance").plain_guidance(model, *pair, 5.0)
        euler = comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            results.append(guider.sample(noise, torch.zeros_like(noise), euler, sigmas))
    text = "works with type ovis (run in process)"
    outcome.equals("CLIPLoader", "our loader's CLIP, with our MODEL", *results, 1e-4, text)


def test_an_earlier_layer_of_the_text_encoder_is_refused(server, outcome):
    workflow = with_model_node(server)
    layer = add(workflow, "layer", "CLIPSetLastLayer", clip=["1", 1], stop_at_clip_layer=-2)
    workflow["2"]["inputs"]["clip"] = layer
    sentence = "Ovis-Image takes its text encoder's last layer: remove the CLIP Set Last Layer node"
    outcome.refused("CLIPSetLastLayer", server, workflow, sentence)


def test_the_stock_lora_loader(server, outcome):
    settings = {"lora_name": LORA, "strength_model": 0.8}
    stock_loader, ours, native = (
        server.latent(with_model_node(server, class_type, settings, native), "5")
        for class_type, native in (
            ("LoraLoaderModelOnly", False),
            ("OvisImageLoraLoader", False),
            ("LoraLoaderModelOnly", True),
        )
    )
    assert distance(stock_loader, native) <= 1e-4
    plain = server.latent(with_model_node(server), "5")
    peer = "Ovis-Image LoRA Loader"
    outcome.equals("LoraLoaderModelOnly", peer, stock_loader, ours, 1e-5, unlike=plain)


def on_both(workflow, hooks):
    """Puts hooks on the positive and the negative."""
    for name, source in (("positive", "2"), ("negative", "3")):
        inputs = {"cond_NEW": [source, 0], "strength": 1.0, "set_cond_area": "default", "hooks": hooks}
        workflow["5"]["inputs"][name] = add(workflow, name, "ConditioningSetProperties", **inputs)
    return workflow


def test_a_lora_as_a_hook_on_the_conditioning(server, outcome):
    settings = {"lora_name": LORA, "strength_model": 0.8}
    expected = server.latent(with_model_node(server, "LoraLoaderModelOnly", settings), "5")
    latents = []
    for native in (False, True):
        workflow = with_model_node(server, native=native)
        on_both(workflow, add(workflow, "hook", "CreateHookLoraModelOnly", **settings))
        latents.append(server.latent(workflow, "5"))
    assert distance(*latents) <= 1e-4
    plain = server.latent(with_model_node(server), "5")
    outcome.equals("CreateHookLoraModelOnly", "LoraLoaderModelOnly", latents[0], expected, 1e-5, unlike=plain)


def test_a_lora_as_a_hook_on_the_clip(server, outcome):
    settings = {"lora_name": LORA, "strength_model": 0.8, "strength_clip": 0.7}
    loaded, hooked, model_only = (with_model_node(server) for _ in range(3))
    for workflow, strength_clip in ((loaded, 0.7), (model_only, 0.0)):
        lora = {**settings, "strength_clip": strength_clip, "model": ["1", 0], "clip": ["1", 1]}
        workflow["5"]["inputs"]["model"] = add(workflow, "lora", "LoraLoader", **lora)
        workflow["2"]["inputs"]["clip"] = workflow["3"]["inputs"]["clip"] = ["lora", 1]
    hook = add(hooked, "hook", "CreateHookLora", **settings)
    on_clip = {"clip": ["1", 1], "hooks": hook, "apply_to_conds": True, "schedule_clip": False}
    clip = add(hooked, "clip", "SetClipHooks", **on_clip)
    hooked["2"]["inputs"]["clip"] = hooked["3"]["inputs"]["clip"] = clip
    expected, result, without = (server.latent(w, "5") for w in (loaded, hooked, model_only))
    outcome.equals("CreateHookLora, SetClipHooks", "LoraLoader", result, expected, 1e-5, unlike=without)


def test_a_hook_of_changing_strength(server, outcome):
    latents = []
    for native in (False, True):
        workflow = with_fixed_shift(server, native)
        hook = add(workflow, "hook", "CreateHookLoraModelOnly", lora_name=LORA, strength_model=0.8)
        first = add(workflow, "first", "CreateHookKeyframe", strength_mult=1.0, start_percent=0.0)
        last = {"strength_mult": 0.2, "start_percent": 0.5, "prev_hook_kf": first}
        keyframes = add(workflow, "last", "CreateHookKeyframe", **last)
        on_both(workflow, add(workflow, "keyed", "SetHookKeyframes", hooks=hook, hook_kf=keyframes))
        latents.append(server.latent(workflow, "5"))
    constant = {"lora_name": LORA, "strength_model": 0.8}
    always = server.latent(with_model_node(server, "LoraLoaderModelOnly", constant), "5")
    assert distance(latents[0], always) > 1e-3
    plain = server.latent(with_fixed_shift(server), "5")
    names = "CreateHookKeyframe, SetHookKeyframes"
    outcome.equals(names, stock.ON_NATIVE, *latents, 1e-4, unlike=plain)


def test_a_model_as_a_hook(server, outcome):
    """At full strength the hooked model is the other one."""
    workflow = with_model_node(server)
    settings = {"ckpt_name": SECOND, "strength_model": 1.0, "strength_clip": 0.0}
    on_both(workflow, add(workflow, "hook", "CreateHookModelAsLora", **settings))
    other = with_model_node(server)
    other["1"]["inputs"]["model_name"] = SECOND
    expected, plain = (server.latent(graph, "5") for graph in (other, with_model_node(server)))
    result = server.latent(workflow, "5")
    outcome.equals("CreateHookModelAsLora", "the other model", result, expected, 1e-4, unlike=plain)


def write_controlnet(path, context_dim):
    """A FLUX ControlNet of XLabs' kind with one block, random."""
    import comfy.ldm.flux.controlnet
    import comfy.ops

    flux = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 8, "patch_size": 2, "txt_ids_dims": []}
    rope = {"axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": False}
    size = {"hidden_size": 256, "num_heads": 2, "mlp_ratio": 4.0, "depth": 1, "depth_single_blocks": 0}
    network = comfy.ldm.flux.controlnet.ControlNetFlux(
        context_in_dim=context_dim, **flux, **rope, **size, operations=comfy.ops.disable_weight_init
    )
    shapes = {key.replace("_norm.weight", "_norm.scale"): t.shape for key, t in network.state_dict().items()}
    save_file({key: torch.randn(shape) / 16 for key, shape in shapes.items()}, path)


def with_controlnet(server, class_type, context_dim):
    name = f"flux_{context_dim}.safetensors"
    write_controlnet(server.base / "models" / "controlnet" / name, context_dim)
    workflow = with_model_node(server)
    image = add(workflow, "hint", "EmptyImage", width=128, height=192, batch_size=1, color=0x3366CC)
    net = add(workflow, "net", "ControlNetLoader", control_net_name=name)
    hint = {"control_net": net, "image": image, "strength": 1.0}
    if class_type == "ControlNetApply":
        applied = add(workflow, "apply", class_type, conditioning=["2", 0], **hint)
        workflow["5"]["inputs"]["positive"] = applied
    else:
        pair = {"positive": ["2", 0], "negative": ["3", 0], "start_percent": 0.0, "end_percent": 1.0}
        add(workflow, "apply", class_type, **pair, **hint)
        workflow["5"]["inputs"] |= {"positive": ["apply", 0], "negative": ["apply", 1]}
    return workflow


@pytest.mark.parametrize("class_type", ["ControlNetApply", "ControlNetApplyAdvanced"])
def test_a_controlnet_is_refused(server, comfyui, outcome, class_type):
    sentence = "Ovis-Image has no ControlNets: remove the Apply ControlNet node from its conditioning"
    fitting = with_controlnet(server, class_type, tiny_model.TRANSFORMER.context_dim)
    assert server.fail(fitting)["exception_message"].strip() == sentence
    # FLUX's own read 4096 numbers a token where we have 2048, so they cannot even run on our conditioning.
    outcome.refused(class_type, server, with_controlnet(server, class_type, 64), sentence)
