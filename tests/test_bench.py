"""The bench's own arithmetic; measurements themselves are no tests."""

import json

import pytest
import tiny_model
import torch
from PIL import Image

BENCH = tiny_model.ROOT / "tests" / "bench"


@pytest.fixture(scope="module")
def meter():
    return tiny_model.import_by_path("bench_meter", BENCH / "meter.py")


@pytest.fixture(scope="module")
def table():
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
        c = b.view(10, 100)[1:]  # no memory of its own
        del b
        c.add_(1)
        d = x * 2
        del c, d
        e = x + 3
    assert counted.peak_bytes == 8000
    assert counted.bytes == e.nbytes == 4000
    assert sum(counted.operators.values()) == 5


def test_results_are_written_for_machines_and_people(table, monkeypatch, tmp_path):
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    row = table.less_is_better("a", "bytes", 2.0, 3.0, "peer", "B", "command")
    table.write("x", [row], "A note.")
    (entry,) = json.loads((tmp_path / "results" / "x.json").read_text())
    assert entry["ratio"] == 1.5
    assert entry.keys() >= {"id", "what", "ours", "peer", "peer_name", "unit", "command", "hardware", "date"}
    assert "| bytes | 2 B | 3 B | peer | 1.50 |" in (tmp_path / "results" / "x.md").read_text()
    assert Image.open(tmp_path / "results" / "x.png").width == table.WIDTH


def test_bench_offers_the_scripts_alone():
    dev = tiny_model.import_by_path("dev", tiny_model.ROOT / "dev.py")
    names = dev.bench_names()
    assert "cpu" in names
    assert not {"meter", "table", "networks"} & set(names)
