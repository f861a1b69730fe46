"""What every test may ask for: the small model, the real tokenizer, and `ovis_core` importable by name."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

if "PYTEST_XDIST_WORKER" in os.environ:  # torch's threads of several processes wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# How fast a machine is decides no test.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Registers `tiny_model` and, through it, `ovis_core` without touching sys.path (see design of the tests in
# README).
_spec = importlib.util.spec_from_file_location("tiny_model", Path(__file__).with_name("tiny_model.py"))
sys.modules["tiny_model"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["tiny_model"])

import tiny_model  # noqa: E402

for _name in ("tiny_lora", "tiny_gguf", "example_workflows"):
    tiny_model.import_by_path(_name, Path(__file__).with_name(f"{_name}.py"))


class ByFile(LoadFileScheduling):
    """Gives each worker whole files, and those that write a page together to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "test_stock_*.py" if "test_stock_" in file else file


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


@pytest.fixture(scope="session")
def parts():
    """Small random networks in float32; tests do not change them."""
    return tiny_model.tiny_parts()


@pytest.fixture(scope="session")
def tokenizer():
    from ovis_core.prompt import PromptTokenizer

    return PromptTokenizer.from_folder(tiny_model.tokenizer_files())


@pytest.fixture(scope="session")
def diffusers_folder(tmp_path_factory) -> Path:
    """The small model as a diffusers pipeline folder, transformer sharded."""
    models = tmp_path_factory.mktemp("diffusers_models")
    tiny_model.write("diffusers", models)
    return models / "diffusers" / "Ovis-Image-tiny"


@pytest.fixture(scope="session")
def diffusers_pipeline(diffusers_folder):
    """diffusers' OvisImagePipeline on the same weights, the peer of most tests."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        OvisImagePipeline,
        OvisImageTransformer2DModel,
    )
    from transformers import Qwen2TokenizerFast, Qwen3Model

    tokenizer = Qwen2TokenizerFast.from_pretrained(diffusers_folder / "tokenizer")
    # The published tokenizer's template, thinking off; the one that ComfyUI ships belongs to Qwen2.5.
    tokenizer.chat_template = (
        r"{% for m in messages %}"
        r"{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        r"{% endfor %}"
        r"{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}"
    )
    pipeline = OvisImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_image_seq_len=256,
            max_image_seq_len=4096,
            base_shift=0.5,
            max_shift=1.15,
        ),
        vae=AutoencoderKL.from_pretrained(diffusers_folder / "vae"),
        text_encoder=Qwen3Model.from_pretrained(diffusers_folder / "text_encoder"),
        tokenizer=tokenizer,
        transformer=OvisImageTransformer2DModel.from_pretrained(diffusers_folder / "transformer"),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
