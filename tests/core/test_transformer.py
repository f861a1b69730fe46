import copy

import pytest
import tiny_model
import torch

from ovis_core.latents import image_ids, pack_latents, text_ids, unpack_latents
from ovis_core.transformer import MAX_TABLES, OvisImageTransformer, TransformerConfig

# 512x512, 768x1344, 512x2048 and 2048x512 pixels, at a quarter of their sides, in latent pixels.
SIZES = [(16, 16), (24, 42), (16, 64), (64, 16)]


def inputs(batch, height, width, context_dim=32):
    generator = torch.Generator().manual_seed(height * 100 + width + batch)
    x = torch.randn(batch, 16, height, width, generator=generator)
    sigma = torch.linspace(0.97, 0.06, batch)
    context = torch.randn(batch, 256, context_dim, generator=generator)
    context[:, 40:] = 0  # padded positions are zero vectors
    return x, sigma, context


def diffusers_velocity(model, x, sigma, context):
    height, width = x.shape[-2:]
    out = model(
        hidden_states=pack_latents(x),
        encoder_hidden_states=context,
        timestep=sigma,
        img_ids=image_ids(height, width),
        txt_ids=text_ids(context.shape[1]),
    )
    return unpack_latents(out.sample, height, width)


def distance(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
def test_float32_velocity_equals_diffusers(parts, diffusers_pipeline, size, batch):
    args = inputs(batch, *size)
    with torch.no_grad():
        ours = parts[0](*args)
        theirs = diffusers_velocity(diffusers_pipeline.transformer, *args)
    assert theirs.std() > 0.1
    assert distance(ours, theirs) <= 1e-5


@pytest.mark.parametrize(
    ("size", "dtype"), [*((size, torch.bfloat16) for size in SIZES), (SIZES[1], torch.float16)], ids=str
)
@pytest.mark.parametrize("batch", [1, 3])
def test_low_precision_is_no_further_from_float32_than_diffusers(
    parts, diffusers_pipeline, size, dtype, batch
):
    x, _, context = inputs(batch, *size)
    # Exact in bfloat16: diffusers rounds its timesteps, we do not.
    sigma = torch.tensor([0.96875, 0.5, 0.0625])[:batch]
    ours = copy.deepcopy(parts[0]).to(dtype)
    theirs = copy.deepcopy(diffusers_pipeline.transformer).to(dtype)
    with torch.no_grad():
        exact = parts[0](x, sigma, context)
        our_error = distance(ours(x.to(dtype), sigma, context.to(dtype)), exact)
        their_error = distance(
            diffusers_velocity(theirs, x.to(dtype), sigma.to(dtype), context.to(dtype)), exact
        )
    assert our_error <= 1.2 * their_error


def test_each_image_of_a_batch_is_its_own(parts):
    x, sigma, context = inputs(3, 16, 16)
    with torch.no_grad():
        together = parts[0](x, sigma, context)
        alone = torch.cat([parts[0](x[i : i + 1], sigma[i : i + 1], context[i : i + 1]) for i in range(3)])
    assert distance(together, alone) <= 1e-5


def test_padded_text_takes_part(parts):
    x, sigma, context = inputs(1, 16, 16)
    with torch.no_grad():
        assert distance(parts[0](x, sigma, context[:, :40]), parts[0](x, sigma, context)) > 1e-3


def test_odd_sizes_are_padded_and_cropped_back(parts):
    x, sigma, context = inputs(1, 7, 9)
    with torch.no_grad():
        velocity = parts[0](x, sigma, context)
    assert velocity.shape == x.shape
    assert velocity.isfinite().all()


def test_gradients_match_finite_differences_in_float64(parts):
    model = copy.deepcopy(parts[0]).double().requires_grad_(True)
    x, sigma, context = (t.double() for t in inputs(1, 4, 4))
    weight = model.single_blocks[1].linear1.weight
    direction = torch.randn_like(weight)

    def loss():
        return model(x, sigma, context).square().mean()

    loss().backward()
    slope = (weight.grad * direction).sum().item()
    step = 1e-6
    with torch.no_grad():
        weight += step * direction
        above = loss().item()
        weight -= 2 * step * direction
        below = loss().item()
    assert slope == pytest.approx((above - below) / (2 * step), rel=1e-6)


def test_released_model_has_the_reported_number_of_parameters():
    model = OvisImageTransformer(TransformerConfig(), device="meta")
    assert sum(p.numel() for p in model.parameters()) == 7_370_449_728
    names = ("_mod.lin", "modulation.lin", "adaLN_modulation")
    modulation = [p.numel() for name, p in model.named_parameters() if any(part in name for part in names)]
    assert sum(modulation) == 1_463_239_680  # of which a step needs nothing but the timestep


def test_a_config_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="rotary dimensions"):
        TransformerConfig(num_heads=16)


def test_rotary_tables_are_made_once_a_size_and_serve_gradients_too():
    torch.manual_seed(0)
    network = OvisImageTransformer(tiny_model.TRANSFORMER)
    made = []
    network.pe_embedder.register_forward_hook(lambda *args: made.append(args))
    x, context = torch.randn(1, 16, 4, 6), torch.randn(1, 8, 32)
    with torch.inference_mode():
        first = network(x, torch.ones(1), context)
        network(x.mT.contiguous(), torch.ones(1), context)
        network(x, torch.ones(1), context[:, :5])
        network(x, torch.ones(1), context)
    assert len(made) == 3
    again = network(x, torch.ones(1), context)
    again.sum().backward()
    torch.testing.assert_close(again, first)
    assert network.img_in.weight.grad.abs().max() > 0
    for height in range(2, 24, 2):
        network(torch.randn(1, 16, height, 4), torch.ones(1), context)
    assert len(network._tables) == MAX_TABLES
