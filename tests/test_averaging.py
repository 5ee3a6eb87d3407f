"""The running average: against its formula, and going on from a saved state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.averaging import WARM_UP, WeightAverage


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def steps(net, count, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        with torch.no_grad():
            for value in net.state_dict().values():
                if value.is_floating_point():
                    value.add_(torch.randn(value.shape, generator=generator))
                else:
                    value.add_(1)
        yield


def test_it_follows_the_formula_of_an_exponential_average():
    net = network()
    average = WeightAverage(net, 0.9)
    expected = net[0].weight.detach().clone()
    for step, _ in enumerate(steps(net, 200, 1), 1):
        average.update()
        kept = min(0.9, step / (WARM_UP + step))
        expected = kept * expected + (1 - kept) * net[0].weight.detach()
    torch.testing.assert_close(average.network[0].weight, expected)
    assert average.network[1].num_batches_tracked == 200
    assert not torch.allclose(average.network[0].weight, net[0].weight)


def test_batch_statistics_are_averaged_too():
    net = network()
    average = WeightAverage(net, 0.5)
    net[1].running_mean.fill_(11.0)
    average.update()
    assert average.network[1].running_mean.tolist() == pytest.approx([10.0, 10.0])  # 1 / 11 of the old one is kept


def test_it_neither_learns_nor_drops_out():
    average = WeightAverage(network(), 0.9)
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())


def test_a_restored_average_goes_on_as_the_uninterrupted_one():
    net, other = network(), network()
    whole, first = WeightAverage(net, 0.9), WeightAverage(other, 0.9)
    for _ in steps(net, 6, 2):
        whole.update()
    generator = steps(other, 6, 2)
    for _ in range(3):
        next(generator)
        first.update()
    second = WeightAverage(network(), 0.9)
    second.load_state({"network": {k: v.clone() for k, v in first.state()["network"].items()}, "steps": first.steps})
    second._pair(other)
    for _ in generator:
        second.update()
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[key]), key


def test_it_lists_the_network_s_tensors_a_few_times_only(monkeypatch):
    """A list for each tensor would take a network of thousands of tensors minutes to begin."""
    lists, real = [], nn.Sequential.state_dict
    monkeypatch.setattr(nn.Sequential, "state_dict", lambda self: lists.append(self) or real(self))
    WeightAverage(network(), 0.9)
    assert len(lists) == 2
