"""TorchScript, tracing and export take the plain operations, whatever backend is chosen."""

import subprocess
import sys

import pytest
import torch

from common.selective_scan import dispatch, selective_scan


class Scan(torch.nn.Module):
    """Its parameters are those of a block; u, delta, B and C come from outside."""

    def __init__(self, tensors):
        super().__init__()
        self.A, self.D, self.bias = (torch.nn.Parameter(tensors[i].detach()) for i in (2, 5, 6))

    def forward(self, u, delta, B, C):
        return selective_scan(u, delta, self.A, B, C, self.D, self.bias, True)


def split(tensors):
    """The module and its four inputs."""
    return Scan(tensors), [tensors[i].detach() for i in (0, 1, 3, 4)]


LOAD = """
import sys, torch
module, signals = torch.jit.load(sys.argv[1]), torch.load(sys.argv[2], weights_only=True)
torch.save(module(*signals).detach(), sys.argv[3])
assert not any(name.split(".")[0] == "common" for name in sys.modules)
"""


def test_loads_in_a_fresh_process_at_another_length(tmp_path, inputs):
    """Nothing of the collection is importable there; the other length needs several segments."""
    module, signals = split(inputs(1, 4, 2, 20, groups=2, dtype=torch.float32))
    scripted = torch.jit.script(module)
    torch.testing.assert_close(scripted(*signals), module(*signals))
    scripted.save(tmp_path / "scan.ts")
    _, longer = split(inputs(1, 4, 2, 5001, groups=2, dtype=torch.float32))
    torch.save(longer, tmp_path / "signals.pt")
    files = [tmp_path / name for name in ("scan.ts", "signals.pt", "y.pt")]
    subprocess.run([sys.executable, "-I", "-c", LOAD, *files], check=True, cwd=tmp_path, timeout=600)
    torch.testing.assert_close(torch.load(files[2], weights_only=True), module(*longer).detach())


def test_scripted_can_be_trained_and_refuses_bad_shapes(inputs):
    module, signals = split(inputs(1, 4, 2, 20, dtype=torch.float32))
    scripted = torch.jit.script(module)
    found = torch.autograd.grad(scripted(*signals).sum(), list(scripted.parameters()))
    torch.testing.assert_close(found, torch.autograd.grad(module(*signals).sum(), list(module.parameters())))
    with pytest.raises(torch.jit.Error, match="delta should have shape"):
        scripted(signals[0], signals[1][..., :3], *signals[2:])
    assert scripted(*[x[..., :0] for x in signals]).shape == (1, 4, 0)


def test_forced_backend_does_not_reach_scripts(monkeypatch, inputs):
    monkeypatch.setenv(dispatch.ENVIRONMENT, "nothing of the kind")
    module, signals = split(inputs(1, 2, 2, 9, dtype=torch.float32))
    assert torch.jit.script(module)(*signals).shape == (1, 2, 9)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_and_exported_follow_their_inputs(inputs):
    """Compiled code, and assignment in place to some exporters, would give the example's output for ever."""
    module, signals = split(inputs(1, 4, 2, 20, dtype=torch.float32))
    others = [x.flip(2) for x in signals]
    with torch.no_grad():
        for plain in (torch.jit.trace(module, signals), torch.export.export(module, tuple(signals)).module()):
            torch.testing.assert_close(plain(*others), module(*others))


def test_onnx_equals_eager(tmp_path, inputs):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, signals = split(inputs(1, 4, 2, 20, dtype=torch.float32))
    torch.onnx.export(module, tuple(signals), tmp_path / "scan.onnx", dynamo=True)
    session = runtime.InferenceSession(tmp_path / "scan.onnx", providers=["CPUExecutionProvider"])
    others = [x.flip(2) for x in signals]
    (found,) = session.run(None, {x.name: y.numpy() for x, y in zip(session.get_inputs(), others, strict=True)})
    torch.testing.assert_close(torch.from_numpy(found), module(*others).detach(), rtol=1e-5, atol=1e-5)
