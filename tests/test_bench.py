"""Tests the bench's own arithmetic, not its measurements."""

import contextlib
import json
from pathlib import Path

import pytest
import tiny_model
import torch
from PIL import Image

from ovis_core.files import layouts
from ovis_core.files.rules import convert

BENCH = tiny_model.ROOT / "tests" / "bench"


@pytest.fixture(scope="module")
def meter():
    """Imports the bench's meter."""
    return tiny_model.import_by_path("bench_meter", BENCH / "meter.py")


@pytest.fixture(scope="module")
def table():
    """Imports the bench's table."""
    return tiny_model.import_by_path("bench_table", BENCH / "table.py")


def test_operations_of_products_attention_and_convolutions(meter):
    x = torch.empty(2, 5, 8, device="meta")
    with meter.Meter() as counted:
        torch.nn.Linear(8, 3, device="meta")(x)
    assert counted.flops == 2 * 2 * 5 * 8 * 3
    q, k = torch.empty(1, 4, 6, 16, device="meta"), torch.empty(1, 4, 10, 16, device="meta")
    with meter.Meter() as counted:
        torch.nn.functional.scaled_dot_product_attention(q, k, value=k)
    assert counted.flops == 2 * 2 * 4 * 6 * 10 * 16
    assert counted.operators["attention"] == 1
    with meter.Meter() as counted:
        torch.nn.Conv2d(3, 7, 3, padding=1, device="meta")(torch.empty(1, 3, 9, 11, device="meta"))
    assert counted.flops == 2 * 7 * 9 * 11 * 3 * 9


def test_peak_memory_counts_what_lives_at_once(meter):
    x = torch.empty(1000, device="meta")
    with meter.Meter() as counted:
        a = x + 1  # 4000 bytes
        b = a + 1
        del a
        c = b.view(10, 100)[1:]  # takes no memory of its own
        del b
        c.add_(1)
        d = x * 2
        del c, d
        e = x + 3
    assert counted.peak_bytes == 8000
    assert counted.bytes == e.nbytes == 4000
    assert sum(counted.operators.values()) == 5


def test_weights_read_are_counted_once_and_views_not_at_all(meter):
    layer, unused = (torch.nn.Linear(10, 20, bias=False, device="meta") for _ in range(2))
    x = torch.empty(5, 10, device="meta")
    with meter.Meter() as counted, torch.no_grad():
        layer(x)
        layer(x + 1)
        unused.weight.t()
    assert counted.given_bytes == 4 * (10 * 20 + 5 * 10)


def test_waits_are_numbers_read_and_copies_across_devices(meter):
    x = torch.ones(3)
    with meter.Meter() as counted:
        x.add(1).to(torch.float64).copy_(x)
        x[:2].clone()
    assert counted.waits == 0
    with meter.Meter() as counted:
        assert x[0].item() == 1
        assert x.sum() > 2
        x.to("meta")
        torch.empty(3, device="meta").copy_(x)
    assert counted.waits == 4


def test_counts_of_zero_have_a_ratio(table):
    row = table.fewer_is_better("a", "waits", 0, 3, "peer", "command")
    assert (row.ours, row.peer, row.ratio) == (0, 3, 4.0)


def test_results_are_written_for_machines_and_people(table, monkeypatch, tmp_path):
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    row = table.less_is_better("a", "bytes", 2.0, 3.0, "peer", "B", "command")
    table.write("x", [row], "A note.")
    (entry,) = json.loads((tmp_path / "results" / "x.json").read_text())
    assert entry["ratio"] == 1.5
    assert entry.keys() >= {"id", "what", "ours", "peer", "peer_name", "unit", "command", "hardware", "date"}
    assert "| bytes | 2 B | 3 B | peer | 1.50 |" in (tmp_path / "results" / "x.md").read_text()
    assert Image.open(tmp_path / "results" / "x.png").size == table.plot([row]).size


def test_bars_begin_behind_the_longest_label_and_end_in_the_picture(table):
    short, long = (
        table.less_is_better("a", what, 1.0, 50.0, "peer", "B", "command") for what in ("x", "x" * 90)
    )
    images = [table.plot(rows) for rows in ([short], [short, long])]
    starts, ends = [], []
    for image in images:
        blue = [x for x in range(image.width) if image.getpixel((x, table.BAR_HEIGHT)) == (0x1F, 0x4E, 0x9C)]
        starts.append(blue[0])
        ends.append(image.width - blue[-1])
    assert starts[1] > starts[0] + 400
    assert ends[0] == ends[1] > 40, "room for the figure"


@pytest.fixture(scope="module")
def gpu_rows():
    """Imports the rows of the GPU bench."""
    tiny_model.import_by_path("table", BENCH / "table.py")
    return tiny_model.import_by_path("gpu_rows", BENCH / "gpu_rows.py")


@pytest.fixture(scope="module")
def timer():
    """Imports the bench's timer."""
    return tiny_model.import_by_path("bench_timer", BENCH / "timer.py")


def gpu_part(**runs) -> dict:
    """Makes figures as one part of the GPU bench might measure them at 1024x1024."""
    runs = {
        id: {"ms": ms, "quartiles_ms": [ms - 1, ms + 1], "repeats": 20, "attention": "kernel"}
        for id, ms in runs.items()
    }
    return {
        "command": "command",
        "date": "2026-01-02",
        "hardware": "a GPU",
        "steps": 50,
        "ceilings": [["bf16 product 4352x3072x33792, sustained 10 s", 750.0, "TFLOP/s", {}]],
        "reference": "float32",
        "errors": {"D0": 0.02, "U0": 0.01},
        "left_out": {"N0c": "needs CUDA"},
        "sizes": {"1024": {"tflop": 102.0, "runs": runs}},
        "cards": [],
    }


def test_gpu_rows_compare_what_was_measured_in_one_part(gpu_rows):
    first = gpu_part(D0=300.0, U0=250.0, U1=200.0)
    first["sizes"]["1024"]["runs"]["D0"] |= {"image_s": 15.0, "peak_bytes": 3 * 2**30}
    first["sizes"]["1024"]["runs"]["U1"] |= {"image_s": 10.0, "peak_bytes": 2 * 2**30}
    second = gpu_part(D0=330.0, U1=220.0, U3=110.0, U5=120.0)
    rows = {row.id: row for row in gpu_rows.rows_of({"1": first, "2": second})}
    assert rows["step-1024-U1-D0"].ratio == 1.5
    assert rows["step-1024-U1-D0"].ours == 200.0, "a second part must not overwrite the first's"
    assert rows["image-1024-U1-D0"].ratio == rows["memory-1024-U1-D0"].ratio == 1.5
    assert rows["memory-1024-U1-D0"].peer == 3.0
    assert rows["step-1024-U3-U1"].ratio == 2.0, "by the part's own baseline"
    assert rows["skipped-1024"].ours == 20.0
    assert rows["rate-1024"].ours == 102 / 0.2
    assert rows["rate-1024"].ratio == pytest.approx(510 / 750)
    assert rows["error-U0-D0"].ratio == 2.0
    assert not any("N0" in id for id in rows), "what was left out has no rows"
    page = gpu_rows.page({"1": first, "2": second})
    assert "| 1024 | U1 ours, compiled | 200.0 | 199.0 to 201.0 | 510 | 10.0 | 2.00 |" in page
    assert "left out: N0c (needs CUDA)" in page


def test_targets_of_the_gpu_bench_are_met_or_missed_or_not_measured(gpu_rows):
    first = gpu_part(D0=300.0, D1=206.0, U0=250.0, U1=200.0)
    first["sizes"]["1024"]["runs"]["U1"] |= {"image_s": 8.7, "peak_bytes": 12 * 2**30}
    second = gpu_part(D0=200.0, U1=200.0, U3=110.0)
    second["sizes"]["1024"]["runs"]["U3"]["image_s"] = 5.5
    lines = gpu_rows.page({"1": first, "2": second}).splitlines()
    targets = [line.rpartition(": ")[2] for line in lines if " at least " in line or " at most " in line]
    assert targets == [
        "1.50 times, met",  # by the first part
        "1.03 times, missed",
        "not measured",
        "not measured",
        "8.70 s, missed",
        "12.00 GiB, met",
        "not measured",
        "5.50 s, met",
    ]
    assert gpu_rows.page({}).count("not measured") == len(targets)


def test_the_page_has_the_longest_kernels_of_three(gpu_rows):
    part = gpu_part(D0=300.0, U1=200.0)
    for run in part["sizes"]["1024"]["runs"].values():
        run |= {"total_ms": 190.0, "longest": [[f"{i}" * 70, 9.0 - i, 2 + i] for i in range(7)]}
    page = gpu_rows.page({"1": part})
    assert page.count("Longest kernels") == 1
    assert "1024x1024, U1 ours, compiled, of 190.0 ms:" in page
    assert f"- `{'4' * 60}`: 5.0 ms, 6 calls" in page
    assert "`5" not in page


def test_distances_from_another_reference_are_no_rows(gpu_rows):
    part = gpu_part(D0=300.0, U0=250.0) | {"reference": "D0"}
    assert not any(row.id.startswith("error") for row in gpu_rows.rows_of({"1": part}))
    assert "distance from D0" in gpu_rows.page({"1": part})


def test_cards_of_less_memory(gpu_rows):
    part = gpu_part()
    common = {"way": "static", "side": 1024, "steps": 6, "image_s": [9.0, 6.0, 6.0], "forwards": 1.0}
    for memory, ours, peer in ((16, 0, 2), (8, 5, 10)):
        for id, step, moved in (("U0", 0.5, ours), ("N0", 1.0, peer)):
            row = {"card": f"{memory} GB", "memory": memory, "id": id, "step_s": step, "alike": id == "U0"}
            row |= {"resident_bytes": [2**31, 2**30, 2**30], "moved_bytes": moved * 2**30}
            part["cards"].insert(0, common | row)
    rows = {row.id: row for row in gpu_rows.rows_of({"3": part})}
    assert rows["card-step-8-GB-static"].ratio == rows["card-moved-8-GB-static"].ratio == 2.0
    assert "card-moved-16-GB-static" not in rows, "nothing moved has no ratio"
    lines = [line for line in gpu_rows.page({"3": part}).splitlines() if "GB" in line]
    assert [line.split(" | ")[0] for line in lines] == ["| 16 GB", "| 16 GB", "| 8 GB", "| 8 GB"]
    ours = "| 0.500 | 9.0, 6.0, 6.0 | 2.00, 1.00, 1.00 | 5.00 | 1 | yes |"
    assert f"| 8 GB | static | U0 ours, eager | 1024, 6 steps {ours}" in lines


def test_a_part_of_the_gpu_bench_replaces_itself_alone(gpu_rows, tmp_path):
    path = tmp_path / "measured.json"
    gpu_rows.merge(path, "2", gpu_part(U1=220.0))
    gpu_rows.merge(path, "1", gpu_part(U1=200.0))
    measured = gpu_rows.merge(path, "1", gpu_part(U1=190.0))
    assert list(measured) == ["1", "2"]
    assert json.loads(path.read_text()) == measured
    steps = [part["sizes"]["1024"]["runs"]["U1"]["ms"] for part in measured.values()]
    assert steps == [190.0, 220.0]


def test_steps_are_taken_in_turns_until_the_deadline(timer):
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "abc"}
    cpu = torch.device("cpu")
    taken = timer.interleaved(steps, cpu, warm_ups=2, repeats=5)
    turns = ["".join(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert len(turns) == 7
    assert {"".join(sorted(turn)) for turn in turns} == {"abc"}
    assert len(set(turns)) > 1, "the order is random"
    assert {name: len(durations) for name, durations in taken.items()} == dict.fromkeys("abc", 5)
    late = timer.interleaved(steps, cpu, warm_ups=1, repeats=5, deadline=0.0)
    assert [len(durations) for durations in late.values()] == [3, 3, 3]


def test_a_step_that_fails_leaves_the_others_in_their_turns(timer):
    failed, calls = [], []

    @contextlib.contextmanager
    def guard(name):
        try:
            yield
        except RuntimeError as error:
            failed.append((name, str(error)))

    def third_fails():
        calls.append(None)
        if len(calls) == 3:
            raise RuntimeError("no memory")

    steps = {"good": lambda: None, "bad": third_fails}
    taken = timer.interleaved(steps, torch.device("cpu"), warm_ups=1, repeats=5, guard=guard)
    assert {name: len(durations) for name, durations in taken.items()} == {"good": 5}
    assert failed == [("bad", "no memory")]
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(RuntimeError, match="no memory"):
        timer.interleaved(steps, torch.device("cpu"), warm_ups=1, repeats=5)


def test_peaks_count_what_a_step_keeps_for_the_next(timer, monkeypatch):
    state = {"now": 1000, "peak": 0}

    def step():
        kept = max(state["now"], 1000 + 100)  # a table, made once
        made = 0 if state["now"] == kept else 500  # on the way to it
        state.update(now=kept, peak=max(state["peak"], kept + 30 + made))

    cuda = {
        "synchronize": lambda device: None,
        "memory_allocated": lambda device: state["now"],
        "max_memory_allocated": lambda device: state["peak"],
        "reset_peak_memory_stats": lambda device: state.update(peak=state["now"]),
    }
    for name, function in cuda.items():
        monkeypatch.setattr(f"torch.cuda.{name}", function)
    assert timer.peak_bytes(step, torch.device("cuda")) == 130


def test_summaries_are_medians_and_quartiles(timer):
    assert timer.summary([0.005, 0.001, 0.002, 0.003, 0.004]) == {
        "ms": 3.0,
        "quartiles_ms": [2.0, 4.0],
        "repeats": 5,
    }


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128>>", True),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", True),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80", True),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", True),
        ("nvjet_tst_256x128_64x4_2x1_v_bz_coopA_bias_TNT", False),
        ("triton_poi_fused_add_mul_native_layer_norm_0", False),
    ],
)
def test_attention_kernels_are_known_by_their_names(timer, name, is_one):
    assert bool(timer.ATTENTION.search(name)) == is_one


def test_random_weights_are_the_same_under_all_names():
    weights = tiny_model.import_by_path("bench_weights", BENCH / "weights.py")
    with torch.device("meta"):
        network = tiny_model.OvisImageTransformer(tiny_model.TRANSFORMER)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    ours, theirs = weights.random_weights(tiny_model.TRANSFORMER, layouts, shapes, "cpu", torch.float32)
    assert {name: tensor.shape for name, tensor in ours.items()} == shapes
    depth = tiny_model.TRANSFORMER.depth, tiny_model.TRANSFORMER.depth_single_blocks
    converted = convert(theirs, layouts.diffusers_transformer_rules(*depth))
    assert all(torch.equal(converted[name], ours[name]) for name in shapes)
    shared = {tensor.untyped_storage().data_ptr() for tensor in ours.values()}
    alone = [name for name, tensor in theirs.items() if tensor.untyped_storage().data_ptr() not in shared]
    assert alone == ["norm_out.linear.weight", "norm_out.linear.bias"]
    assert all(tensor.abs().max() > 0 for tensor in ours.values())


def test_bench_offers_the_scripts_alone():
    dev = tiny_model.import_by_path("dev", tiny_model.ROOT / "dev.py")
    names = dev.bench_names()
    assert {"cpu", "gpu"} <= set(names)
    assert not {"meter", "table", "networks", "pack", "weights", "timer", "gpu-rows", "gpu-offload"} & set(
        names
    )


def test_bench_passes_its_arguments_on(monkeypatch):
    dev = tiny_model.import_by_path("dev", tiny_model.ROOT / "dev.py")
    commands = []
    monkeypatch.setattr(dev, "find_comfyui", lambda: ("python", Path("ComfyUI")))
    monkeypatch.setattr(dev, "require_packages", lambda *_: None)
    monkeypatch.setattr(dev, "call", lambda command, comfyui: commands.append(command) or 0)
    assert dev.main(["bench", "gpu", "--part", "2", "--small"]) == 0
    assert dev.main(["bench", "cpu"]) == 0
    assert commands == [
        ["python", BENCH / "gpu.py", "--part", "2", "--small"],
        ["python", BENCH / "cpu.py"],
    ]
