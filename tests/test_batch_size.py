"""The largest batch that fits, mixed precision, memory that is kept, and the word when memory runs out."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from models import batch_size
from models.batch_size import MadeUpBatch, choose_batch_size, largest_batch, largest_by_growth, most_sensible, sizes
from models.network import Architecture
from models.precision import MixedPrecision, low_precision, precision
from models.trainer import TrainerSettings
from options.parser import parse_options
from options.values import AUTO
from util.errors import UserError
from util.memory import forget_host_peak, is_out_of_memory, out_of_memory_told, recent_host_peak

CPU = torch.device("cpu")
SMALL = Architecture("small", 64)


def test_batches_grow_by_a_third_or_a_half():
    assert sizes(100) == [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96]
    assert sizes(64)[-1] == 64 and sizes(1) == [2]


@pytest.mark.parametrize("limit", [2, 3, 5, 16, 33, 95, 96, 1000])
@pytest.mark.parametrize("first", [1, 32, 512])
def test_the_largest_batch_that_fits_is_found_and_nothing_is_tried_twice(limit, first):
    tried = []

    def fits(images):
        tried.append(images)
        return images <= limit

    assert largest_batch(fits, 128, first=first) == max(size for size in sizes(128) if size <= limit)
    assert len(set(tried)) == len(tried) <= 6


def test_where_not_even_two_images_fit_it_says_what_to_lower():
    with pytest.raises(UserError, match="--preset small"):
        largest_batch(lambda images: False, 64)


def test_a_small_training_set_keeps_its_steps():
    assert most_sensible(400) == 50
    assert most_sensible(1) == 2
    assert most_sensible(100_000) == batch_size.LARGEST


def test_a_host_batch_follows_from_what_two_small_ones_take():
    # 100 bytes held and 10 an image: 0.9 x 1000 bytes hold 80 images, and 64 is the next size below.
    assert largest_by_growth(lambda images: 100 + 10 * images, 1000, 256) == 64
    assert largest_by_growth(lambda images: 100, 1000, 48) == 48  # no growth: as many as are sensible


def test_choosing_leaves_the_draws_as_they_were_and_takes_real_steps(monkeypatch):
    taken = []
    real = batch_size.take_steps
    monkeypatch.setattr(batch_size, "take_steps", lambda *given: (taken.append(given[-1]), real(*given)))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    found = choose_batch_size(SMALL, TrainerSettings(), CPU, 60, free_host=4_000_000_000)
    assert taken == [2, 4] and found == 6  # 60 images leave steps for batches of 7 at most
    torch.testing.assert_close(torch.rand(3), expected, atol=0, rtol=0)


def test_without_a_word_on_memory_a_number_is_asked_for():
    with pytest.raises(UserError, match="--batchSize 16"):
        choose_batch_size(SMALL, TrainerSettings(), CPU, 60, free_host=None)


def test_auto_is_for_training_and_a_run_that_goes_on_keeps_its_number(tmp_path):
    def parse(command, *given):
        return parse_options(command, ["--dataroot", "x", *given], prog="p", description="d")

    assert parse("train", "--batchSize", "auto").batchSize == AUTO
    assert parse("train", "--batchSize", "12").batchSize == 12
    with pytest.raises(UserError, match="for training"):
        parse("test", "--batchSize", "auto")
    with pytest.raises(UserError, match="or auto"):
        parse("train", "--batchSize", "0")
    folder = tmp_path / "SEG"
    folder.mkdir()
    from options.parser import save_options

    save_options(folder / "options.json", parse("train", "--batchSize", "24"))
    again = parse("train", "--continue_train", "--batchSize", "auto", "--checkpoints_dir", str(tmp_path))
    assert again.batchSize == 24


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=["gpu", "cpu", "python"])
def test_running_out_of_memory_names_the_batch_to_try(error):
    with pytest.raises(UserError) as told, out_of_memory_told(32, kept="go on with --continue_train", smaller="less"):
        raise error
    assert "out of memory with --batchSize 32" in str(told.value)
    assert "--batchSize 16, or less; go on with --continue_train" in str(told.value)


def test_pytorch_says_what_is_looked_for_when_the_host_has_no_memory():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory_told(32):
        raise RuntimeError("shapes differ")


KEPT = """
import resource, sys, torch
from util.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    raise SystemExit(77)
def step():
    return torch.ones(16_000_000).add_(1)  # 64 MB
for _ in range(8):  # the first ones find their place
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", KEPT, how], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("this C library keeps or gives back memory as it likes")
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone")
def test_kept_memory_is_used_again_without_page_faults():
    assert faults("keep") < 1000  # 64 MB are 16,000 pages


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc alone")
def test_the_peak_of_the_host_is_that_since_it_was_forgotten():
    if not forget_host_peak():
        pytest.skip("this kernel keeps the peak")
    before = recent_host_peak()
    held = torch.ones(50_000_000)  # 200 MB
    del held
    assert 150e6 < recent_host_peak() - before < 400e6
    assert forget_host_peak() and recent_host_peak() < before + 150e6


@pytest.mark.parametrize(
    ("present", "bf16", "expected"),
    [("cuda", True, torch.bfloat16), ("cuda", False, torch.float16), ("cpu", True, None)],
)
def test_the_format_suits_the_device(monkeypatch, present, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    assert low_precision(torch.device(present)) == expected


def trained(mixed, steps=3, spoil=None):
    """A small network's weights after some steps, by plain calls where ``mixed`` is None."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        with precision(CPU) if mixed is None else mixed.autocast():
            loss = network(torch.rand(16, 4)).float().square().mean()
        if step == spoil:
            loss = loss * float("inf")
        if mixed is None:
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 0.01)
            optimizer.step()
        else:
            mixed.backward(loss)
            mixed.step(optimizer, network.parameters(), 0.01)
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def test_on_a_cpu_every_call_is_the_plain_one():
    mixed = MixedPrecision(CPU)
    assert torch.equal(trained(mixed), trained(None))
    assert mixed.state() == {} and mixed.scaler is None


def scaled(dtype=torch.float16):
    """Scaled losses with float32 arithmetic, which a CPU can do as well."""
    mixed = MixedPrecision(CPU, dtype)
    mixed.dtype = None
    return mixed


def test_scaled_losses_are_clipped_and_stepped_as_plain_ones_are():
    torch.testing.assert_close(trained(scaled()), trained(None), atol=1e-6, rtol=1e-5)


def test_a_step_that_is_not_finite_is_left_out_and_the_scale_lowered():
    mixed = scaled()
    assert torch.equal(trained(mixed, steps=3, spoil=2), trained(scaled(), steps=2))
    assert mixed.state()["scale"] == 2.0**15
    other = scaled()
    other.load_state(mixed.state())
    assert other.state() == mixed.state()
    MixedPrecision(CPU).load_state(mixed.state())  # a GPU's state on a CPU: nothing to scale


def test_made_up_batches_have_both_classes_and_the_layout_of_real_ones():
    batch = MadeUpBatch.of(4, 64, CPU)
    assert batch.rgb.shape == (4, 3, 64, 64) and batch.rgb.is_contiguous(memory_format=torch.channels_last)
    assert set(batch.mask.unique().tolist()) == {0.0, 1.0} and batch.label.tolist() == [0, 1, 0, 1]
