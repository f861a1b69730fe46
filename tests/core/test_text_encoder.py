import pytest
import torch

from ovis_core.files.parts import text_encoder_from_shapes
from ovis_core.prompt import MAX_TOKENS, PREFIX_TOKENS
from ovis_core.text_encoder import TextEncoder, TextEncoderConfig

PROMPTS = ["", 'A neon sign that says "OPEN 24H"', "复古海报，标题“新年快乐”", "long " * 400]


def test_states_equal_diffusers_padded_run(parts, tokenizer, diffusers_pipeline):
    """The reference pads to 284, runs with a mask and zeroes; we run the valid tokens alone."""
    ours = parts[1]([tokenizer(prompt).ids for prompt in PROMPTS])
    theirs = diffusers_pipeline._get_ovis_prompt_embeds(PROMPTS, device="cpu")
    assert ours.shape == theirs.shape == (4, 256, 32)
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-5
    for prompt, states in zip(PROMPTS, ours, strict=True):
        assert not states[len(tokenizer(prompt).ids) - PREFIX_TOKENS :].any()


def test_a_batch_equals_its_prompts_alone(parts, tokenizer):
    ids = [tokenizer(prompt).ids for prompt in PROMPTS]
    alone = torch.cat([parts[1]([one]) for one in ids])
    assert (parts[1](ids) - alone).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compute_dtype_is_the_callers(parts, tokenizer, dtype):
    model = TextEncoder(parts[1].config)
    model.load_state_dict(parts[1].state_dict())
    model.to(dtype)
    assert model([tokenizer("x").ids]).dtype == dtype


def test_released_encoder_has_the_reported_number_of_parameters():
    model = TextEncoder(TextEncoderConfig(), device="meta")
    assert sum(p.numel() for p in model.parameters()) == 1_720_574_976


def test_config_follows_transformers_in_theta(parts):
    config = TextEncoderConfig(rope_theta=1e5, num_layers=1).to_transformers()
    assert text_encoder_from_shapes(
        {key: tuple(value.shape) for key, value in parts[1].state_dict().items()}, config.to_dict()
    ).rope_theta == pytest.approx(1e5)
    assert MAX_TOKENS == 284
