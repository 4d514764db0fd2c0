"""Transformers: attention by hand, masks, positions, conditions, and one token at a time."""

import math

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.data.base import keep_rows
from polopt.networks.transformer import Block, Transformer, causal_mask, padding_mask

pytestmark = pytest.mark.usefixtures("float64")


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def by_hand(net, x, mask):
    """One block of two heads and the last norm, in numpy, one query at a time."""
    block, arrays = net.blocks[0], {}
    for path, value in net.named_parameters():
        arrays[path.removeprefix("blocks.0.")] = value.detach().numpy()

    def linear(name, x):
        return x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]

    length, width = x.shape
    query, key, value = np.split(linear("project", norm(x)), 3, -1)
    mixed, size = np.zeros_like(x), width // block.heads
    for i in range(length):
        for head in range(block.heads):
            part = slice(head * size, (head + 1) * size)
            logits = np.array([query[i, part] @ key[j, part] / math.sqrt(size) for j in range(length)])
            weight = np.where(mask[i], np.exp(logits), 0.0)
            mixed[i, part] = weight @ value[:, part] / weight.sum()
    x = x + linear("gather", mixed)
    hidden = linear("feed.0", norm(x))
    erf = np.vectorize(math.erf)
    return norm(x + linear("feed.2", 0.5 * hidden * (1 + erf(hidden / math.sqrt(2)))))


def test_a_block_by_hand():
    net, x = Transformer(8, 1, 2), torch.randn(4, 8)
    for mask in (torch.ones(4, 4, dtype=torch.bool), causal_mask(torch.zeros(4, dtype=torch.bool))):
        np.testing.assert_allclose(net(x, mask).detach(), by_hand(net, x.numpy(), mask.numpy()), atol=1e-12)
    torch.testing.assert_close(net(x), net(x, torch.ones(4, 4, dtype=torch.bool)))


def test_masks_by_hand():
    first = torch.tensor([False, False, True, False, False])
    one = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert causal_mask(first).int().tolist() == one
    one[4] = [0, 0, 0, 1, 1]
    assert causal_mask(first, context=2).int().tolist() == one
    valid = torch.tensor([[False, True, True]])
    assert padding_mask(valid).int().tolist() == [[[1, 1, 1], [0, 1, 1], [0, 1, 1]]]


def test_what_is_masked_changes_nothing():
    net, x = Transformer(8, 2, 2, rotary=True), torch.randn(3, 6, 8)
    first = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 1, 0]], dtype=torch.bool)
    out = net(x, causal_mask(first))
    later = x.clone()
    later[:, 4:] = torch.randn(3, 2, 8)
    torch.testing.assert_close(net(later, causal_mask(first))[:, :4], out[:, :4])
    torch.testing.assert_close(net(x[1:2, 2:], causal_mask(first[1:2, 2:])), out[1:2, 2:])  # an episode of its own
    valid = torch.tensor([False, False, True, True, True, True])
    padded = torch.cat([torch.full((3, 2, 8), 1e6), x[:, 2:]], 1)
    none = torch.zeros(3, 6, dtype=torch.bool)
    mask = causal_mask(none) & padding_mask(valid)
    torch.testing.assert_close(net(padded, mask)[:, 2:], net(x[:, 2:], causal_mask(none[:, 2:])))


def test_positions_are_seen_as_differences():
    net, x = Transformer(8, 1, 2, rotary=True), torch.randn(5, 8)
    shuffled = x[[1, 0, 2, 3, 4]]
    plain = Transformer(8, 1, 2)
    torch.testing.assert_close(plain(shuffled)[2:], plain(x)[2:])  # without positions only the set counts
    assert not torch.allclose(net(shuffled)[2:], net(x)[2:])
    block = net.blocks[0]
    angle, moved = (net.angles(torch.arange(5) + shift) for shift in (0, 1000))
    torch.testing.assert_close(block(x, angle=moved)[0], block(x, angle=angle)[0])


def test_a_condition_begins_silent_and_then_reaches_each_token():
    net, x = Transformer(8, 2, 2, condition=3), torch.randn(2, 4, 8)
    start = net(x, condition=torch.randn(2, 1, 3))
    np.testing.assert_allclose(start.detach(), norm(x.numpy()), atol=1e-12)  # the identity, and a last norm
    for block in net.blocks:
        torch.nn.init.normal_(block.modulation[1].weight, std=0.3)
    torch.nn.init.normal_(net.modulation[1].weight, std=0.3)
    one, other = torch.randn(2, 2, 1, 3)
    assert not torch.allclose(net(x, condition=one), net(x, condition=other))
    alike = net(x, condition=one.expand(2, 4, 3))
    torch.testing.assert_close(alike, net(x, condition=one))
    each = one.expand(2, 4, 3).clone()
    each[:, 2] = other[:, 0]
    alone = torch.eye(4, dtype=torch.bool)  # tokens that see only themselves
    apart = (net(x, alone, each) - net(x, alone, one)).abs().amax(-1).detach()
    assert (apart[:, [0, 1, 3]] < 1e-12).all()
    assert (apart[:, 2] > 1e-3).all()


@pytest.mark.parametrize(("rotary", "condition"), [(True, 0), (False, 0), (True, 3)])
def test_one_token_at_a_time_is_the_whole_pass(rotary, condition):
    net = Transformer(8, 3, 2, rotary=rotary, condition=condition, context=3)
    for parameter in net.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    x, given = torch.randn(2, 9, 8), torch.randn(2, 9, 3) if condition else None
    first = torch.zeros(2, 9, dtype=torch.bool)
    first[0, 4] = first[1, 1] = first[1, 7] = True
    whole = net(x, causal_mask(first, 3), given)
    memory, steps = net.new_memory(2), []
    for t in range(9):
        memory = keep_rows(memory, ~first[:, t])
        out, memory = net.step(x[:, t], memory, None if given is None else given[:, t])
        steps.append(out)
    torch.testing.assert_close(torch.stack(steps, 1), whole, rtol=1e-10, atol=1e-10)
    assert memory["count"].tolist() == [5, 2]


def test_any_leading_dimensions_and_gradients():
    net = Transformer(8, 2, 4, condition=2)
    x, condition = torch.randn(3, 2, 5, 8), torch.randn(2, 1, 2)
    torch.testing.assert_close(net(x, condition=condition)[1], net(x[1], condition=condition))
    plain = Transformer(8, 2, 4, rotary=True)
    plain(torch.randn(2, 5, 8)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in plain.parameters() if parameter.dim() > 1)


def test_it_compiles_in_one_graph_and_keeps_the_default_dtype():
    torch.set_default_dtype(torch.float32)
    net, x = Transformer(8, 2, 2, rotary=True, context=4), torch.randn(2, 6, 8)
    mask = causal_mask(torch.zeros(2, 6, dtype=torch.bool))
    torch._dynamo.reset()
    whole = torch.compile(net, fullgraph=True, backend="aot_eager")(x, mask)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole, net(x, mask))
    out, memory = torch.compile(net.step, fullgraph=True, backend="aot_eager")(x[:, 0], net.new_memory(2))
    assert (out.dtype, memory["keys"].dtype) == (torch.float32, torch.float32)


def test_what_it_refuses():
    with pytest.raises(UsageError, match="3 heads cannot share a width of 8"):
        Transformer(8, 1, 3)
    with pytest.raises(UsageError, match="8 heads cannot share a width of 8 in even parts"):
        Transformer(8, 1, 8, rotary=True)
    with pytest.raises(RuntimeError, match="without a context has no memory"):
        Transformer(8).step(torch.randn(1, 8), {})
    assert isinstance(Transformer(8).blocks[0], Block)
