import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from common.networks.mamba import SCANS, MambaBlock, from_sequences, scan_orders, to_sequences


def make(**options):
    torch.manual_seed(0)
    block = MambaBlock(**{"channels": 3, "d_state": 2, **options})
    with torch.no_grad():  # A and D would be alike in all channels, hiding a mix-up
        block.A_log.add_(0.3 * torch.randn_like(block.A_log))
        block.D.add_(torch.randn_like(block.D))
    return block


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def silu(x):
    return x / (1 + np.exp(-x))


def one_order(p, k, x):
    """One order's branch by the paper's formulae, in loops over tokens: ``x (L, E)`` to ``(L, E)``."""
    length, inner = x.shape
    mine = slice(k * inner, (k + 1) * inner)
    rank = p["dt_proj.weight"].shape[1]
    states = p["A_log"].shape[1]
    mixed = slice(k * (rank + 2 * states), (k + 1) * (rank + 2 * states))
    A, h, out = -np.exp(p["A_log"][mine]), np.zeros((inner, states)), np.zeros_like(x)
    for t in range(length):
        u = p["conv1d.bias"][mine].copy()
        for tap in range(4):  # the last tap is the token itself
            if t - 3 + tap >= 0:
                u += p["conv1d.weight"][mine][:, 0, tap] * x[t - 3 + tap]
        u = silu(u)
        low, B, C = np.split(p["x_proj.weight"][mixed] @ u, [rank, rank + states])
        step = np.log1p(np.exp(p["dt_proj.weight"][mine] @ low + p["dt_proj.bias"][mine]))
        h = np.exp(step[:, None] * A) * h + (step * u)[:, None] * B
        out[t] = h @ C + p["D"][mine] * u
    return out


def orders_of(scan, size):
    """Every order as the list of the voxels' indices, by nested loops over coordinates."""
    index = np.arange(math.prod(size)).reshape(size)
    flat = [index.reshape(-1)]
    if scan == "bidirectional":
        flat.append(flat[0][::-1])
    elif len(size) == 2:
        flat.append(np.array([index[i, j] for j in range(size[1]) for i in range(size[0])]))
    elif len(size) == 3:
        d, h, w = (range(n) for n in size)
        flat.append(np.array([index[i, j, k] for i in d for k in w for j in h]))
        flat.append(np.array([index[i, j, k] for j in h for k in w for i in d]))
    return flat


def naive(block, tokens, scan, size):
    p = {name: value.detach().double().numpy() for name, value in block.state_dict().items()}
    out = np.zeros(tokens.shape)
    for b, sequence in enumerate(tokens.double().numpy()):
        x, z = np.split(sequence @ p["in_proj.weight"].T, 2, axis=1)
        y = np.zeros_like(x)
        for k, order in enumerate(orders_of(scan, size)):
            y[order] += one_order(p, k, x[order])
        out[b] = (y * silu(z)) @ p["out_proj.weight"].T
    return torch.from_numpy(out)


@pytest.mark.parametrize(
    ("scan", "size", "options"),
    [
        ("tri_axial", (5,), {}),
        ("tri_axial", (1,), {}),
        ("tri_axial", (7,), {"channels": 17, "expand": 1}),
        ("bidirectional", (5,), {}),
        ("bidirectional", (2, 3), {}),
        ("tri_axial", (2, 3), {}),
        ("tri_axial", (2, 3, 2), {"channels": 17}),  # step sizes of rank 2
        ("tri_axial", (2, 1, 3), {}),
    ],
)
def test_equals_the_formulae_in_loops(scan, size, options):
    block = make(scan=scan, spatial_dims=len(size), **options)
    tokens = noise(2, math.prod(size), block.channels)
    expected = naive(block, tokens, scan, size)
    torch.testing.assert_close(block(tokens, list(size)).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("size", [(4,), (2, 3), (2, 3, 4)])
def test_orders_are_permutations_that_are_undone(scan, size):
    permutations, backwards = scan_orders(scan, len(size))
    index = torch.arange(math.prod(size)).float().reshape(1, 1, *size)
    sequences = to_sequences(index, permutations, backwards)
    assert all(sorted(order.tolist()) == list(range(index.numel())) for order in sequences[0])
    assert len({tuple(order.tolist()) for order in sequences[0]}) == len(backwards)  # no order twice
    image = noise(2, 3, *size)
    there = to_sequences(image, permutations, backwards)
    assert there.shape == (2, 3 * len(backwards), math.prod(size))
    back = from_sequences(there, permutations, backwards, list(size))
    torch.testing.assert_close(back, image.flatten(2) * len(backwards))


@pytest.mark.parametrize("scan", SCANS)
def test_orders_are_the_ones_by_hand(scan):
    size = (2, 3, 4)
    permutations, backwards = scan_orders(scan, 3)
    index = torch.arange(24).float().reshape(1, 1, *size)
    found = to_sequences(index, permutations, backwards)[0].long().numpy()
    assert {tuple(order) for order in found} == {tuple(order) for order in orders_of(scan, size)}


def test_a_forward_scan_is_causal_and_a_bidirectional_one_is_not():
    tokens = noise(1, 6, 3)
    changed = tokens.clone()
    changed[:, 3] += 1
    for scan, same in (("tri_axial", True), ("bidirectional", False)):
        block = make(scan=scan)
        before, after = block(tokens), block(changed)
        assert torch.equal(before[:, :3], after[:, :3]) == same
        assert not torch.allclose(before[:, 3:], after[:, 3:])


def test_parameters_are_those_of_mamba_ssm():
    """Names and shapes as ``mamba_ssm.Mamba(32, d_state=4)`` writes them; rank 2 = 32 / 16."""
    expected = {
        "A_log": (64, 4),
        "D": (64,),
        "in_proj.weight": (128, 32),
        "conv1d.weight": (64, 1, 4),
        "conv1d.bias": (64,),
        "x_proj.weight": (2 + 8, 64),
        "dt_proj.weight": (64, 2),
        "dt_proj.bias": (64,),
        "out_proj.weight": (32, 64),
    }
    block = MambaBlock(32, d_state=4)
    assert {name: tuple(value.shape) for name, value in block.state_dict().items()} == expected
    block.load_state_dict({name: torch.zeros(shape) for name, shape in expected.items()})
    assert MambaBlock(33, d_state=4).rank == 3


def test_weights_of_mamba_ssm_give_its_output():
    mamba_ssm = pytest.importorskip("mamba_ssm", reason="mamba-ssm is not installed", exc_type=ImportError)
    if not torch.cuda.is_available():
        pytest.skip("mamba-ssm needs a CUDA device")
    theirs = mamba_ssm.Mamba(32, d_state=4).cuda()
    block = MambaBlock(32, d_state=4).cuda()
    block.load_state_dict(theirs.state_dict())
    tokens = noise(2, 50, 32).cuda()
    torch.testing.assert_close(block(tokens), theirs(tokens), atol=1e-5, rtol=1e-4)


def test_first_values_follow_the_published_rules():
    torch.manual_seed(0)
    block = MambaBlock(64, d_state=4, scan="bidirectional")
    torch.testing.assert_close(block.A_log.exp(), torch.tensor([1.0, 2, 3, 4]).expand(256, 4))
    assert torch.equal(block.D, torch.ones(256))
    steps = torch.log1p(block.dt_proj.bias.exp())
    assert 0.00099 < steps.min() and steps.max() < 0.101
    log_steps = steps.log()  # uniform between log 1e-3 and log 1e-1: mean, spread
    assert abs(log_steps.mean() - math.log(1e-2)) < 0.3 and abs(log_steps.std() - math.log(100) / 12**0.5) < 0.15
    weight = block.dt_proj.weight
    assert weight.abs().max() <= 0.5 and weight.std() > 0.25  # uniform in +-4^-0.5
    assert block.x_proj.weight.abs().max() <= 128**-0.5


def test_gradients_reach_all_parameters_and_are_right():
    block = make(scan="tri_axial", spatial_dims=2).double()
    tokens = noise(1, 4, 3).double().requires_grad_()
    block(tokens, [2, 2]).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())
    # the scan takes these in float32, so only what passes through float64 throughout is checked to the last digit
    for parameter, index in ((tokens, (0, 1, 2)), (block.conv1d.weight, (7, 0, 1)), (block.x_proj.weight, (4, 2))):
        value = parameter.data[index].item()
        sides = []
        for shift in (1e-4, -1e-4):
            parameter.data[index] = value + shift
            sides.append(block(tokens, [2, 2]).square().sum().item())
        parameter.data[index] = value
        assert parameter.grad[index].item() == pytest.approx((sides[0] - sides[1]) / 2e-4, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(("scan", "dims"), [("tri_axial", 1), ("bidirectional", 2), ("tri_axial", 3)])
def test_script_equals_eager_at_two_sizes(scan, dims):
    block = make(scan=scan, spatial_dims=dims).eval()
    scripted = torch.jit.script(block)
    for length in (3, 2):
        size = [length, 5, 2][:dims]
        tokens = noise(2, math.prod(size), 3)
        torch.testing.assert_close(scripted(tokens, size), block(tokens, size), atol=1e-6, rtol=1e-5)
    if dims == 1:
        tokens = noise(1, 70, 3)  # more than one chunk of any backend
        torch.testing.assert_close(scripted(tokens), block(tokens), atol=1e-6, rtol=1e-5)


def test_a_saved_script_runs_in_a_fresh_process_at_another_length(tmp_path):
    block = make().eval()
    torch.jit.script(block).save(str(tmp_path / "block.ts"))
    tokens = noise(1, 9, 3)
    torch.save(tokens, tmp_path / "tokens.pt")
    code = (
        "import sys, torch; folder = sys.argv[1]; block = torch.jit.load(folder + '/block.ts');"
        "tokens = torch.load(folder + '/tokens.pt', weights_only=True);"
        "torch.save(block(tokens).detach(), folder + '/out.pt');"
        "assert not any(name.startswith('common') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    torch.testing.assert_close(torch.load(tmp_path / "out.pt", weights_only=True), block(tokens), atol=1e-6, rtol=1e-5)


def test_autocast_keeps_the_scan_in_float32():
    block = make(channels=8)
    tokens = noise(2, 33, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = block(tokens)
    torch.testing.assert_close(low.float(), block(tokens), atol=0.03, rtol=0.05)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="scan must be one of.*'zigzag'"):
        MambaBlock(4, scan="zigzag")
    for name in ("channels", "d_state", "expand", "spatial_dims"):
        with pytest.raises(ValueError, match="at least 1"):
            make(**{name: 0})


def test_bad_tokens_are_refused():
    block = make(scan="tri_axial", spatial_dims=2)
    for tokens, size, message in (
        (noise(2, 6, 4), [2, 3], r"\(B, L, 3\), got shape \[2, 6, 4\]"),
        (noise(6, 3), [2, 3], r"\(B, L, 3\)"),
        (noise(2, 6, 3), [2, 2], r"grid of 2 axes that 6 tokens fill, got size \[2, 2\]"),
        (noise(2, 6, 3), [6], "grid of 2 axes"),
        (noise(2, 6, 3), None, "grid of 2 axes"),
        (noise(2, 0, 3), [0, 3], "grid of 2 axes"),
    ):
        with pytest.raises(ValueError, match=message):
            block(tokens, size)
