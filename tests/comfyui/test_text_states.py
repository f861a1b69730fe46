"""Text states that are joined and projected once a run, beside runs that project them in every step."""

import pytest
import torch

STEPS = 4


@pytest.fixture
def plain(model, pack):
    """The MODEL without what a run keeps."""
    clone = model.clone()
    clone.remove_wrappers_with_key("outer_sample", pack("nodes.adapters.network.sampling_run").SAMPLING_RUN)
    return clone


@pytest.fixture
def sample(monkeypatch):
    """A guided run -> samples, and the shapes of the text states that were projected."""

    def sample(patcher, positive=None, negative=None, batch=1, **options):
        import comfy.samplers

        patcher = patcher.clone()
        transformer_options = patcher.model_options["transformer_options"]
        transformer_options |= options.pop("transformer_options", {})
        patcher.model_options |= options
        guider = comfy.samplers.CFGGuider(patcher)
        guider.set_conds(positive or [cond(0)], negative or [cond(1)])
        guider.set_cfg(4.0)
        noise = torch.randn(batch, 16, 4, 4, generator=torch.Generator().manual_seed(0))
        euler, sigmas = comfy.samplers.sampler_object("euler"), torch.linspace(1, 0, STEPS + 1)
        shapes, network = [], patcher.model.diffusion_model
        project = network.project_text
        with monkeypatch.context() as patch, torch.inference_mode():
            patch.setattr(
                network, "project_text", lambda context: shapes.append(context.shape[:2]) or project(context)
            )
            return guider.sample(noise, torch.zeros_like(noise), euler, sigmas, seed=1), shapes

    return sample


@pytest.fixture
def same(sample, model, plain):
    """Asserts that what a run keeps makes no difference -> the shapes that were projected."""

    def same(*args, model=model, plain=plain, **options):
        # The table of modulation rounds otherwise than its layers called step by step.
        samples, shapes = sample(model, *args, **options)
        expected, every = sample(plain, *args, **options)
        assert len(every) >= STEPS
        assert (samples - expected).norm() <= 1e-5 * expected.norm()
        return shapes

    return same


def cond(seed: int, length: int = 256, **options) -> list:
    return [torch.randn(1, length, 32, generator=torch.Generator().manual_seed(seed)), options]


@pytest.mark.parametrize("batch", [1, 3])
def test_a_guided_run_projects_its_prompts_once(same, batch):
    assert same(batch=batch) == [(2 * batch, 256)]


def test_each_length_is_projected_once(same):
    assert sorted(same([cond(0, 256)], [cond(1, 128)])) == [(1, 128), (1, 256)]


def test_prompts_of_areas_and_of_parts_of_the_schedule(same):
    areas = [cond(2, area=(2, 4, 0, 0), strength=1.0), cond(3, area=(2, 4, 2, 0), strength=1.0)]
    late = [cond(4, start_percent=0.5, end_percent=1.0)]
    shapes = same([cond(0), *areas], [cond(1), *late])
    assert len(shapes) <= 2 * 4  # how they are joined differs before and after the late one comes


def test_another_run_projects_anew(sample, model):
    first, _ = sample(model)
    second, shapes = sample(model, [cond(5)])
    assert shapes == [(2, 256)]
    assert not torch.equal(first, second)
    again, _ = sample(model)
    assert torch.equal(again, first)


@pytest.mark.parametrize("is_in_place", [False, True], ids=["made anew", "written into"])
def test_text_states_that_another_node_changes_step_by_step(same, is_in_place):
    def stronger_by_the_step(apply_model, args):
        states, factor = args["c"]["c_crossattn"], 2 - args["timestep"][0].item()
        changed = states.mul_(factor) if is_in_place else states * factor
        return apply_model(args["input"], args["timestep"], **{**args["c"], "c_crossattn": changed})

    assert len(same(model_function_wrapper=stronger_by_the_step)) == STEPS


def test_text_tokens_that_another_node_writes_into(same):
    def replacement(args, extra):
        args["txt"].mul_(1.5)
        return extra["original_block"](args)

    options = {"patches_replace": {"dit": {("double_block", 0): replacement}}}
    assert len(same(transformer_options=options)) == STEPS


def test_a_layer_with_a_hook_runs_in_every_step(sample, model):
    calls = []
    hook = model.model.diffusion_model.txt_in.register_forward_hook(lambda *_: calls.append(1))
    sample(model)
    hook.remove()
    assert len(calls) == STEPS


def test_a_run_with_gradients_joins_them_for_each_step(pack):
    TextStates = pack("nodes.adapters.network.text_states").TextStates
    first, second = (TextStates(torch.randn(1, 4, 8)) for _ in range(2))
    with torch.enable_grad():
        assert first.concat([second]) is not first.concat([second])
    with torch.inference_mode():
        assert first.concat([second]) is first.concat([second])
        assert first.process_cond(2).concat([]) is first.process_cond(2).concat([])
    assert torch.equal(first.concat([second]), torch.cat((first.cond, second.cond)))
