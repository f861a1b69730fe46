"""What other nodes put on a FLUX model reaches our blocks with the same arguments and the same effect."""

import pytest
import tiny_model
import torch


@pytest.fixture(scope="module")
def models(pack, comfyui, tmp_path_factory):
    """Ours and ComfyUI's own model of the same file."""
    import comfy.sd

    folder = tmp_path_factory.mktemp("models")
    path = folder / "diffusion_models" / tiny_model.write("comfyui", folder)["model_name"]
    return (
        pack("nodes.adapters.loading.diffusion_model").load_diffusion_model(path),
        comfy.sd.load_diffusion_model(str(path)),
    )


def run(model, options):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 8, 12, generator=generator)
    context = torch.randn(2, 40, 32, generator=generator)
    with torch.no_grad():
        return model.model.diffusion_model(x, torch.tensor([0.9, 0.3]), context, transformer_options=options)


def describe(value):
    """Shapes and plain values of a patch's arguments; not the options, which carry the patches themselves."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape[-3:])  # ComfyUI repeats its rotary table for the batch
    if isinstance(value, dict):
        hidden = ("patches", "patches_replace", "transformer_options")
        return {key: describe(inner) for key, inner in value.items() if key not in hidden}
    return value


def compare(models, make_options):
    """Runs both models with patches of `make_options(log)` -> their logs, equal, after equal results."""
    logs, results = [], []
    for model in models:
        logs.append([])
        results.append(run(model, make_options(logs[-1])))
    assert (results[0] - results[1]).norm() / results[1].norm() <= 1e-5
    assert logs[0] == logs[1]
    assert (results[0] - run(models[0], {})).norm() / results[1].norm() > 1e-3
    return logs[0]


@pytest.mark.parametrize("name", [("double_block", 1), ("single_block", 0)])
def test_a_block_can_be_replaced(models, name):
    def options(log):
        def replacement(args, extra):
            log.append(describe(args) | describe(args["transformer_options"]))
            out = extra["original_block"](args)
            return {key: value * 0.5 for key, value in out.items()}

        return {"patches_replace": {"dit": {name: replacement}}}

    (call,) = compare(models, options)
    assert (call["block_type"], call["block_index"]) == (name[0].split("_")[0], name[1])


def test_a_block_can_be_skipped(models):
    compare(models, lambda log: {"patches_replace": {"dit": {("single_block", 1): lambda args, extra: args}}})


def test_attention_can_be_patched(models):
    def options(log):
        def before(q, k, v, pe, attn_mask, extra_options):
            log.append(("before", describe(q), describe(pe), attn_mask, describe(extra_options)))
            return {"q": q * 1.5, "v": v.flip(2)}

        def behind(out, extra_options):
            log.append(("behind", describe(out), describe(extra_options)))
            return out * 0.9

        return {"patches": {"attn1_patch": [before], "attn1_output_patch": [behind]}}

    log = compare(models, options)
    assert len(log) == 2 * 4
    assert log[0][-1]["img_slice"] == [40, 40 + 24]


def test_an_attention_mask_from_a_patch_is_used(models):
    def options(log):
        def before(q, k, v, pe, attn_mask, extra_options):
            mask = torch.zeros(q.shape[2], q.shape[2])
            mask[:, :20] = float("-inf")
            return {"attn_mask": mask}

        return {"patches": {"attn1_patch": [before]}}

    compare(models, options)


def test_an_attention_override_is_used(models):
    calls = []

    def override(function, *args, **kwargs):
        calls.append(kwargs.get("transformer_options", {}).get("block_type"))
        return function(*args, **kwargs)

    run(models[0], {"optimized_attention_override": override})
    assert calls == ["double"] * 2 + ["single"] * 2


def test_wrappers_see_what_they_see_on_flux(models):
    import comfy.patcher_extension

    seen = []

    def wrapper(executor, *args, **kwargs):
        seen.append([describe(arg) for arg in args])
        return executor(*args, **kwargs)

    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    for model in models:
        run(model, {"wrappers": {kind: {"test": [wrapper]}}})
    assert seen[0][:7] == seen[1][:7]


@pytest.mark.parametrize("kind", ["attn1_patch", "attn1_output_patch", "optimized_attention_override"])
def test_what_a_patch_keeps_stays_as_it_was(models, kind):
    """Without patches, v's memory is used again; whoever sees it may keep it."""
    kept = []

    def keep(*tensors):
        kept.extend((tensor, tensor.clone()) for tensor in tensors)

    def attn1_patch(q, k, v, pe, attn_mask, extra_options):
        keep(q, k, v)
        return {}

    def attn1_output_patch(out, extra_options):
        keep(out)
        return out

    def optimized_attention_override(function, q, k, v, *args, **kwargs):
        keep(q, k, v)
        return function(q, k, v, *args, **kwargs)

    patch = locals()[kind]
    options = {kind: patch} if "override" in kind else {"patches": {kind: [patch]}}
    patched, plain = run(models[0], options), run(models[0], {})
    assert torch.equal(patched, plain)
    assert len(kept) >= 4
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)
