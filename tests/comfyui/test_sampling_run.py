"""What a run knows of its sigmas, in the place of reading them from the device."""

import pytest
import tiny_model
import torch
from tiny_lora import lora_file, random_pairs

STEPS = 6


@pytest.fixture
def sampling_run(pack):
    return pack("nodes.adapters.network.sampling_run")


@pytest.fixture
def sample(model, pack, sampling_run, monkeypatch):
    """A run as on the CPU, or as on a GPU (`is_read` false) -> samples, what the cache told, and how many
    sigmas were read.
    """

    def sample(is_read, sampler="euler", is_cached=False, denoise_from=1.0, **guidance):
        import comfy.samplers

        monkeypatch.setattr("comfy.model_management.is_device_cpu", lambda device: is_read)
        monkeypatch.setattr(sampling_run, "_off_schedule", set())
        monkeypatch.setattr(sampling_run, "_out_of_order", set())
        told, reads = [], []
        patcher = model
        if is_cached:
            cached_model = pack("nodes.adapters.sampling.residual_cache").cached_model
            patcher = cached_model(model, 1e6, 1, 1, 0, told.append)
        generator = torch.Generator().manual_seed(0)
        conds = [[[torch.randn(1, 256, 32, generator=generator), {}]] for _ in range(2)]
        noise = torch.randn(1, 16, 4, 4, generator=generator)
        core = pack("ovis_core.guidance").Guidance(4.0, **guidance)
        guider = pack("nodes.adapters.sampling.guidance").FlowGuider(patcher, *conds, core)
        sampler = comfy.samplers.sampler_object(sampler)
        sigmas = torch.linspace(denoise_from, 0, STEPS + 1)
        with monkeypatch.context() as patch, torch.inference_mode():
            read = torch.Tensor.__float__
            patch.setattr(torch.Tensor, "__float__", lambda tensor: reads.append(1) or read(tensor))
            samples = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, seed=1)
        return samples, told, len(reads)

    return sample


GUIDANCE = {
    "interval": {"start": 0.8, "end": 0.3},
    "zero steps": {"zero_init_steps": 2},
    "both": {"start": 0.9, "end": 0.2, "zero_init_steps": 1, "zero_star": True},
}


@pytest.mark.parametrize("is_cached", [False, True], ids=["", "cached"])
@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize(
    "sampler", ["euler", "euler_ancestral", "dpmpp_2m", "heun", "dpm_2", "res_multistep"]
)
@pytest.mark.parametrize("denoise_from", [1.0, 0.7])
def test_runs_are_the_same_without_reading(sample, sampler, guidance, is_cached, denoise_from):
    settings = GUIDANCE[guidance]
    samples, told, reads = sample(False, sampler, is_cached, denoise_from, **settings)
    expected, expected_told, _ = sample(True, sampler, is_cached, denoise_from, **settings)
    assert (samples - expected).norm() <= 1e-5 * expected.norm()
    assert told == expected_told
    if sampler in ("euler", "euler_ancestral", "dpmpp_2m", "res_multistep"):
        assert reads == 2  # ComfyUI's, of the schedule's and the model's first sigma, before the run


def test_on_the_cpu_every_evaluation_is_read(sample):
    assert sample(True, is_cached=True)[2] == 2 + STEPS


@torch.inference_mode()
def test_a_guider_of_two_models_keeps_their_weights_apart(pack, parts, tmp_path):
    """ComfyUI's gives the second model the first one's options, and with them its run."""
    import comfy.samplers
    import comfy.sd
    from comfy_extras.nodes_custom_sampler import Guider_DualModel

    path = tmp_path / "diffusion_models" / tiny_model.write("comfyui", tmp_path)["model_name"]
    load = pack("nodes.adapters.loading.diffusion_model").load_diffusion_model
    first, second = load(path), load(path)
    lora = lora_file(random_pairs(parts[0]), "diffusion_model.")[0]
    changed = comfy.sd.load_lora_for_models(second, None, lora, 1.0, 0)[0]
    conds = [[[torch.randn(1, 256, 32), {}]] for _ in range(2)]
    noise = torch.randn(1, 16, 8, 8)

    def run(negative_model):
        guider = Guider_DualModel(first, negative_model)
        guider.set_conds(*conds)
        guider.set_cfg(4.0)
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), euler, torch.linspace(1, 0, STEPS + 1), seed=1)

    before, after = run(second), run(changed)
    second.model.diffusion_model.modulation.forget()
    first.model.diffusion_model.modulation.forget()
    assert (before - after).norm() > 0.01 * after.norm()
    assert (run(changed) - after).norm() <= 1e-5 * after.norm()


def test_a_model_of_another_kind_is_joined_as_comfyui_does(pack):
    join = pack("nodes.adapters.sampling.memory")._join
    assert join(lambda *args: args, object(), [], None, None, {})[1:] == ([], None, None, {})
