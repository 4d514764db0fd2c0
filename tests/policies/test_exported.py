"""Exported policies do what `predict` does, without polopt."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

import polopt
from polopt.cli import main
from polopt.core.errors import RunError, UsageError
from polopt.core.observations import served
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.policies import Auto, Deterministic, Gaussian
from polopt.policies.decoding import SequenceDecoder
from polopt.policies.exported import FORMATS, arrays, exported, names
from tests.policies.language_models import tiny_policy
from tests.training.runs import train

LINE = spaces.Box(-np.inf, np.inf, (3,), np.float64)
IMAGE = spaces.Box(0, 255, (4, 36, 36), np.uint8)
MASKED = spaces.Dict({"x": LINE, "action_mask": spaces.MultiBinary(3)})
NESTED = spaces.Dict({"a": spaces.Tuple([spaces.Discrete(4, start=2), LINE]), "b": spaces.MultiDiscrete([2, 3])})
CHOICE, FORCE = spaces.Discrete(3, start=-1), spaces.Box(np.array([[-2.0], [0.0]]), np.array([[3.0], [1.0]]), (2, 1))
CASES = [
    (LINE, CHOICE, Auto()),
    (LINE, FORCE, Auto()),
    (LINE, FORCE, Gaussian(mean="tanh")),
    (IMAGE, spaces.MultiDiscrete([2, 3], start=[1, 0]), Auto()),
    (MASKED, CHOICE, Auto()),
    (NESTED, FORCE, Deterministic()),
    (spaces.Discrete(4, start=1), spaces.Box(-2, 9, (1,), np.int32), Auto()),
]


def made(obs: spaces.Space, action: spaces.Space, family: Any = None, **network: Any) -> Any:
    torch.manual_seed(0)
    spec = Spec(obs=served(obs), action=action, env_obs=obs)
    actor = (family or Auto()).build(spec, network=Network((8,), **network))
    with torch.no_grad():
        for weight in actor.parameters():  # so that other observations are other actions
            weight.copy_(torch.randn_like(weight) * (weight.dim() > 1) * 3.0 / weight[0].numel() ** 0.5)
    return actor


def observations(space: spaces.Space, count: int) -> Any:
    """`count` of them, one of which forbids an action where some may be forbidden."""
    generator = np.random.default_rng(5)
    if isinstance(space, spaces.Dict):
        return {key: observations(part, count) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(observations(part, count) for part in space.spaces)
    if space == MASKED["action_mask"]:
        return np.array([np.roll([1, 1, 0], row) for row in range(count)], np.int8)
    if isinstance(space, spaces.Box):
        return (generator.normal(size=(count, *space.shape)) * 2).astype(space.dtype)
    space.seed(1)
    return np.stack([space.sample() for _ in range(count)])


def run(content: bytes, kind: str, inputs: list[str], values: list[np.ndarray]) -> np.ndarray:
    if kind == "onnx":
        session = __import__("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
        return session.run(["action"], dict(zip(inputs, values, strict=True)))[0]
    load = torch.jit.load if kind == "torchscript" else lambda file: torch.export.load(file).module()
    return load(io.BytesIO(content))(*map(torch.from_numpy, values)).numpy()


def in_all_formats():
    """ONNX takes seconds: there the first two cases are parts of those that follow."""
    for number, case in enumerate(CASES):
        for kind in FORMATS:
            marks = [pytest.mark.exhaustive] if kind == "onnx" and number < 2 else []
            yield pytest.param(*case, kind, marks=marks, id=f"{number}-{kind}")


@pytest.mark.parametrize(("obs", "action", "family", "kind"), in_all_formats())
def test_the_file_does_what_predict_does(obs, action, family, kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    actor = made(obs, action, family)
    content = exported(actor, kind)
    for count in (1, 20):
        given = observations(obs, count)
        found, wanted = run(content, kind, names(obs), arrays(obs, given)), actor.predict(given)
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert len(np.unique(wanted.reshape(20, -1), axis=0)) > 1


def test_names_follow_the_keys():
    assert names(LINE) == ["obs"]
    assert names(NESTED) == ["a.0", "a.1", "b"]


class Parity(nn.Module):
    """A network that does one thing for an even number of rows and another for an odd one: tracing sees one only."""

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return obs[..., :2] * (1.0 if len(obs) % 2 else 3.0)


def test_what_cannot_be_exported_is_said():
    with pytest.raises(UsageError, match=r"^a recurrent policy is no function of one observation"):
        exported(made(LINE, CHOICE, recurrent="gru"), "pt2")
    with pytest.raises(UsageError, match=r"^there is no format 'tf'; choose onnx, torchscript, pt2$"):
        exported(made(LINE, CHOICE), "tf")
    with pytest.raises(UsageError, match=r"^a language model needs no export"):
        exported(tiny_policy(), "pt2")
    spec = Spec(obs=served(LINE), action=spaces.Box(-1, 1, (2,)), env_obs=LINE)
    decoder = SequenceDecoder(length=2).build(spec, network=Network((8,)))
    for kind in FORMATS:
        with pytest.raises(UsageError, match=r"^a sequence decoder acts by what it did before too: only functions of"):
            exported(decoder, kind)
    actor = made(LINE, FORCE, Deterministic())
    actor.net = Parity()
    with pytest.raises(RunError, match=r"torchscript: it would not act as predict does$"):
        exported(actor, "torchscript")


def test_the_verb_writes_a_file_that_needs_no_polopt(tmp_path, capsys):
    folder = train("ppo", tmp_path / "run", steps=32).folder
    assert main(["export", str(folder), "--format", "torchscript"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "policy.pt")
    code = (
        "import sys, torch; f = torch.jit.load(sys.argv[1]); print(f(torch.eye(4)).tolist(), 'polopt' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code, str(folder / "policy.pt")], capture_output=True, text=True)
    wanted = polopt.load(folder).predict(np.eye(4, dtype=np.float32)).tolist()
    assert said.stdout.strip() == f"{wanted} False"
    assert polopt.export(folder, tmp_path / "new" / "x.pt2", format="pt2") == tmp_path / "new" / "x.pt2"
    assert main(["export", str(folder), "--format", "tf"]) == 2
    assert main(["export", str(Path("nowhere"))]) == 2
