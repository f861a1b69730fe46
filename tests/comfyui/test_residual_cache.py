"""OvisImageCache: which forwards are computed, under every way in which ComfyUI asks for them."""

import gc
import re
import weakref

import pytest
import tiny_model
import torch

from ovis_core.sampling import flow_sigmas

STEPS = 8
ALWAYS = 1e6  # a threshold under which every step is skipped that may be
SHAPE = (2, 16, 8, 12)


@pytest.fixture(scope="module")
def conds():
    generator = torch.Generator().manual_seed(0)
    return [[[torch.randn(1, 40, 32, generator=generator), {}]] for _ in range(3)]


@pytest.fixture
def told():
    return []


@pytest.fixture
def cached(pack, told):
    """`cached(model, threshold, warmup, max_skips, order)` -> a clone whose reports go to `told`."""
    make = pack("nodes.adapters.sampling.residual_cache").cached_model

    def with_cache(model, threshold=ALWAYS, warmup=2, max_skips=1, order=0):
        return make(model, threshold, warmup, max_skips, order, told.append)

    return with_cache


def counting(model):
    """A clone, and what its last double block computes: the conditionings' uuids of each forward."""
    calls = []
    clone = model.clone()

    def count(args, extra):
        calls.append(args["transformer_options"]["uuids"])
        return extra["original_block"](args)

    clone.set_model_patch_replace(count, "dit", "double_block", 1)
    return clone, calls


def guider_of(model, conds, cfg=5.0):
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*conds[:2])
    guider.set_cfg(cfg)
    return guider


def run(guider, sampler="euler", shape=SHAPE, latent=None, mask=None, sigmas=None, callback=None):
    import comfy.samplers

    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    latent = torch.zeros(shape) if latent is None else latent
    sigmas = flow_sigmas(STEPS, 24) if sigmas is None else sigmas
    with torch.inference_mode():
        solver = comfy.samplers.sampler_object(sampler)
        return guider.sample(noise, latent, solver, sigmas, denoise_mask=mask, callback=callback, seed=0)


def distance(one, other):
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "euler_ancestral", "dpm_2"])
def test_threshold_0_is_no_cache_to_the_bit(model, cached, conds, told, sampler):
    plain, calls = counting(model)
    assert torch.equal(
        run(guider_of(cached(model, 0.0), conds), sampler), run(guider_of(plain, conds), sampler)
    )
    assert told == [f"{2 * len(calls)} of {2 * len(calls)} forwards computed"]


@pytest.mark.parametrize(("sampler", "evaluations"), [("euler", STEPS), ("heun", 2 * STEPS - 1)])
@pytest.mark.parametrize("max_skips", [1, 3])
def test_a_large_threshold_skips_as_often_as_allowed(
    model, cached, conds, told, sampler, evaluations, max_skips
):
    counted, calls = counting(model)
    run(guider_of(cached(counted, warmup=2, max_skips=max_skips), conds), sampler)
    computed = 2 + (evaluations - 2) // (max_skips + 1)
    assert len(calls) == computed
    assert told == [f"{2 * computed} of {2 * evaluations} forwards computed"]


def split(monkeypatch, model):
    """Lets ComfyUI find no room for both branches in one batch."""
    monkeypatch.setattr(model.model, "memory_required", lambda shape, cond_shapes=None: shape[0] * 1e15)


def threshold_that_matters(model, cached, conds, told):
    """One at which some steps after the first are skipped and some are not, without a limit.

    A random model's first block changes wholly from step to step.
    """
    for threshold in (1.0, 1.05, 1.1, 1.15, 1.2):
        run(guider_of(cached(model, threshold, 1, 100), conds))
        computed = int(told.pop().split()[0])
        if 4 < computed < 2 * STEPS - 2:
            return threshold
    raise AssertionError("the model's first block does not tell steps apart")


@pytest.mark.parametrize("order", [0, 1])
def test_two_forwards_decide_as_one_batch(model, cached, conds, told, monkeypatch, order):
    threshold = threshold_that_matters(model, cached, conds, told)
    counted, calls = counting(model)
    guider = guider_of(cached(counted, threshold, 1, 100, order), conds)
    together = run(guider)
    assert {len(uuids) for uuids in calls} == {2}
    in_one = len(calls)
    calls.clear()
    split(monkeypatch, model)
    apart = run(guider)
    assert {len(uuids) for uuids in calls} == {1}
    assert len(calls) == 2 * in_one
    assert told[0] == told[1]
    assert distance(apart, together) <= 1e-5


def test_prompts_of_other_lengths_and_one_alone(model, cached, conds, told):
    short = [[conds[0][0][0][:, :10], {}]]
    counted, calls = counting(model)
    run(guider_of(cached(counted), [short, conds[1]]))
    assert {len(uuids) for uuids in calls} == {1}  # they cannot be batched
    assert len(calls) == 2 * (2 + (STEPS - 2) // 2)
    calls.clear()
    run(guider_of(cached(counted), conds, cfg=1.0))
    assert len(calls) == 2 + (STEPS - 2) // 2
    assert told == ["10 of 16 forwards computed", "5 of 8 forwards computed"]


def regional(conds):
    """Two prompts on halves of the picture and a third with a mask, against one negative."""
    (left, _), (right, _), (masked, _) = (conds[i][0] for i in range(3))
    mask = torch.zeros(1, SHAPE[2], SHAPE[3])
    mask[..., :6] = 1
    positive = [
        [left, {"area": (8, 6, 0, 0), "strength": 1.0}],
        [right, {"area": (8, 6, 0, 6), "strength": 1.0}],
        [masked, {"mask": mask, "mask_strength": 0.5, "set_area_to_bounds": False}],
    ]
    return positive, conds[1]


def test_regional_prompts(model, cached, conds, told):
    pair = regional(conds)
    exact = run(guider_of(model, pair))
    counted, calls = counting(model)
    skipped = run(guider_of(cached(counted, order=1), pair))
    computed = 2 + (STEPS - 2) // 2
    assert sum(len(uuids) for uuids in calls) == 6 * computed  # ComfyUI gives each region a negative
    assert told == [f"{6 * computed} of {6 * STEPS} forwards computed"]
    assert 0 < distance(skipped, exact) < 0.3
    assert torch.equal(run(guider_of(cached(model, 0.0), pair)), exact)


def test_a_prompt_that_begins_later_is_computed_with_all_others(model, cached, conds):
    """A conditioning with a range of steps: it has nothing to reuse when it comes."""
    late = [[conds[2][0][0], {"start_percent": 0.5}]]
    counted, calls = counting(model)
    run(guider_of(cached(counted, warmup=1, max_skips=100), [conds[0] + late, conds[1]]))
    sets = [set(uuids) for uuids in calls]
    assert [len(uuids) for uuids in sets] == [2, 3]


def test_masks_and_image_to_image(model, cached, conds):
    latent = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 1, *SHAPE[2:])
    mask[..., 4:] = 1
    sigmas = flow_sigmas(STEPS, 24, denoise=0.6)
    exact = run(guider_of(model, conds), latent=latent, mask=mask, sigmas=sigmas)
    off = run(guider_of(cached(model, 0.0), conds), latent=latent, mask=mask, sigmas=sigmas)
    assert torch.equal(off, exact)
    counted, calls = counting(model)
    skipped = run(guider_of(cached(counted), conds), latent=latent, mask=mask, sigmas=sigmas)
    assert len(calls) == 2 + (STEPS - 2) // 2
    assert torch.allclose(skipped[..., :4], latent[..., :4], atol=1e-5)
    assert 0 < distance(skipped, exact) < 0.3


def test_interruption_leaves_nothing_behind(model, cached, conds, told):
    runner = cached(model)
    guider = guider_of(runner, conds)
    expected = run(guider_of(cached(model), conds))

    def interrupt(step, *_):
        if step == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run(guider, callback=interrupt)
    key = "ovis_residual_cache"
    assert key not in guider.model_options["transformer_options"]
    assert runner.get_attachment(key).report is None
    assert torch.equal(run(guider), expected)
    assert runner.get_attachment(key).report == told[-1] == "10 of 16 forwards computed"


def test_nothing_is_kept_in_memory(model, cached, conds):
    watched, caches = model.clone(), []

    def watch(args, extra):
        caches.append(weakref.ref(args["transformer_options"]["ovis_residual_cache"]))
        return extra["original_block"](args)

    watched.set_model_patch_replace(watch, "dit", "double_block", 0)
    guider = guider_of(cached(watched), conds)
    run(guider)
    gc.collect()
    assert len(caches) == STEPS
    assert all(cache() is None for cache in caches)


def test_two_models_of_the_same_weights_do_not_meet(model, cached, conds):
    cautious, bold = cached(model, 0.0), cached(model)
    exact, skipped = run(guider_of(model, conds)), run(guider_of(bold, conds))
    assert torch.equal(run(guider_of(cautious, conds)), exact)
    assert torch.equal(run(guider_of(bold, conds)), skipped)
    assert torch.equal(run(guider_of(model, conds)), exact)
    assert not torch.equal(skipped, exact)


def test_a_second_cache_takes_the_firsts_place(model, cached, conds, told):
    run(guider_of(cached(cached(model), 0.0), conds))
    assert told == ["16 of 16 forwards computed"]


def test_other_nodes_blocks_and_attention_stay(model, cached, conds):
    patched = model.clone()

    def plain(args, extra):
        return extra["original_block"](args)

    def halve(args, extra):
        return {"img": extra["original_block"](args)["img"] * 0.5}

    patched.set_model_patch_replace(plain, "dit", "double_block", 0)
    patched.set_model_patch_replace(halve, "dit", "single_block", 1)
    seen = []

    def attn1_patch(q, k, v, pe, attn_mask, extra_options):
        seen.append((extra_options["block_type"], extra_options["block_index"]))
        return {"v": v * 1.1}

    patched.set_model_patch(attn1_patch, "attn1_patch")
    exact = run(guider_of(patched, conds))
    seen.clear()
    assert torch.equal(run(guider_of(cached(patched, 0.0), conds)), exact)
    assert len(seen) == 4 * STEPS
    seen.clear()
    skipped = run(guider_of(cached(patched), conds))
    computed = 2 + (STEPS - 2) // 2
    assert seen.count(("double", 0)) == STEPS
    assert seen.count(("single", 1)) == computed
    assert 0 < distance(skipped, exact) < 0.3


def test_a_lora_on_the_model(model, cached, conds):
    patched = model.clone()
    key = "diffusion_model.single_blocks.0.linear2.weight"
    shape = model.model.state_dict()[key].shape
    change = torch.randn(shape, generator=torch.Generator().manual_seed(3)) * 0.02
    patched.add_patches({key: ("diff", (change,))})
    plain, exact = run(guider_of(model, conds)), run(guider_of(patched, conds))
    assert distance(exact, plain) > 1e-3
    assert torch.equal(run(guider_of(cached(patched, 0.0), conds)), exact)
    assert distance(run(guider_of(cached(patched, order=1), conds)), exact) < 0.3


def test_in_comfyuis_compiled_model(model, cached, conds, told):
    """Whose node ignores changes of the options, where the cache is."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

    sigmas = flow_sigmas(3, 24)
    plain = cached(model, warmup=1)
    compiled = plain.clone()
    set_torch_compile_wrapper(compiled, "eager", {"guard_filter_fn": skip_torch_compile_dict})
    expected = run(guider_of(plain, conds), sigmas=sigmas)
    assert distance(run(guider_of(compiled, conds), sigmas=sigmas), expected) <= 1e-6
    assert told == ["4 of 6 forwards computed"] * 2


def test_a_size_of_its_own_for_each_run(model, cached, conds):
    guider = guider_of(cached(model), conds)
    first = run(guider)
    run(guider, shape=(1, 16, 12, 8))
    assert torch.equal(run(guider), first)


def test_another_model_is_refused(cached, comfyui, tmp_path):
    import comfy.sd

    path = tmp_path / "diffusion_models" / tiny_model.write("comfyui", tmp_path)["model_name"]
    with pytest.raises(ValueError, match="connect the Ovis-Image Loader, or use ComfyUI's EasyCache"):
        cached(comfy.sd.load_diffusion_model(str(path)))


def with_cache(workflow, **inputs):
    sampler = workflow["5"]["inputs"]
    workflow["cache"] = {
        "class_type": "OvisImageCache",
        "inputs": {
            **{"model": sampler["model"], "threshold": 1.0, "warmup_steps": 2, "max_skips": 1},
            "taylor_order": 0,
            **inputs,
        },
    }
    sampler["model"] = ["cache", 0]
    return workflow


def stock_sampler(workflow):
    ours = workflow["5"]["inputs"]
    kept = "model", "steps", "cfg", "sampler_name", "positive", "negative", "latent_image", "seed", "denoise"
    workflow["5"] = {
        "class_type": "KSampler",
        "inputs": {**{name: ours[name] for name in kept}, "scheduler": "simple"},
    }
    return workflow


@pytest.mark.parametrize("stock", [False, True])
def test_on_the_graph(server, stock):
    def graph(**cache):
        workflow = server.graph(steps=STEPS)
        if stock:
            stock_sampler(workflow)
        return with_cache(workflow, **cache) if cache else workflow

    plain = server.latent(graph(), "5")
    assert torch.equal(server.latent(graph(threshold=0.0), "5"), plain)
    workflow = graph(max_skips=2)
    outputs = server.run(workflow)
    assert distance(server.latent(workflow, "5"), plain) > 1e-5
    log = (server.base / "log.txt").read_text("utf-8")
    report = re.findall(r"Ovis-Image Cache: (\d+ of 16 forwards computed)", log)[-1]
    assert 4 <= int(report.split()[0]) < 16
    if not stock:
        assert outputs["5"]["text"] == [report]
