"""LIFT: what happens in which stage, its terms by hand, and what its parts hand on."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import polopt
from polopt.config import apply
from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.methods.control import lift, lift_finetune
from polopt.methods.control.lift import LIFT
from polopt.methods.control.lift_finetune import FineTune, ramp
from polopt.methods.control.lift_pretrain import ParallelSAC
from polopt.methods.control.lift_settings import AS_SAC, CONSTANTS, NO_MODEL, SMALL
from polopt.models.fitting import Fitting
from polopt.optim import Optimizer
from polopt.tasks.mechanics import Mechanics
from polopt.tasks.simulated import Simulated, State
from polopt.training import api
from tests.guards.harness import advance, built

MUST = 5
made: Any = built
plan: Any = api.plan
RUN: dict[str, Any] = {"task_options": {"horizon": 20}, "envs": 1, "loggers": (), "seed": 7}


def tuned(method: Any) -> FineTune:
    assert isinstance(method.learner, FineTune)
    return method.learner


def test_must_1_the_target_sees_modes_and_the_model_samples(float64: None) -> None:
    steady = {"pretrain.normalize_obs": False}
    with made("lift", **steady) as method:
        advance(method, 120)
        learner = tuned(method)
        method.collect()
        played = learner.replay.whole()
        assert len(played) == 80  # the warm-up and an epoch
        modes = method.policy.act(played["obs"], greedy=True)[0]["action"]
        torch.testing.assert_close(played["action"], modes)
        imagined = learner.imagined.whole()
        modes = method.policy.act(imagined["obs"], greedy=True)[0]["action"]
        assert int(((imagined["action"] - modes).abs().sum(1) < 1e-9).sum()) == 32 - 16  # what is left of real ones
    with made("lift", **steady, **{"finetune.acts": "sample", "finetune.imagines": "mode"}) as method:
        advance(method, 120)
        learner = tuned(method)
        method.collect()
        for each, share in ((learner.replay.whole(), 0.0), (learner.imagined.whole()[-16:], 1.0)):
            modes = method.policy.act(each["obs"], greedy=True)[0]["action"]
            assert ((each["action"] - modes).abs().sum(1) < 1e-9).double().mean() == share


def test_must_2_the_mechanics_are_those_of_the_simulator() -> None:
    with made("lift") as method:
        advance(method, 10)
        assert method.simulator.state["mass"].tolist() == pytest.approx([0.7, 0.7])
        assert method.simulator.state["length"].tolist() == pytest.approx([1.0, 1.0])
        assert method.simulator.num == 2
        rod: Any = method.model.mechanics
        assert float(rod.mass) == pytest.approx(0.7)
        advance(method, 125)
        assert method.task.state["mass"].tolist() == [1.0]
        assert method.model.known
    with made("lift", simulator=(), dynamics="changes") as method:
        rod = method.model.mechanics
        assert (float(rod.mass), method.simulator.levels, method.model.known) == (1.0, {}, False)


def test_must_3_horizon_and_rounds_grow() -> None:
    assert [ramp((1, 20, 10), epoch) for epoch in range(12)] == [1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 20]
    assert [ramp((10, 1_000, 4), epoch) for epoch in range(6)] == [10, 257, 505, 752, 1_000, 1_000]
    with made("lift") as method:
        advance(method, 120)
        learner, told = tuned(method), []
        original = learner.imagine

        def imagine() -> None:
            before = learner.imagined.added
            original()
            told.append((learner.epoch, learner.imagined.added - before, learner.imagined.capacity))

        learner.imagine = imagine  # type: ignore[method-assign]
        sizes = []
        for _ in range(2 * 2 + 3 * 2 + 1):
            batch = method.collect()
            sizes.append(len(batch))
            method.update(batch)
        assert told == [(1, 16, 32), (1, 16, 32), (2, 32, 96), (2, 32, 96), (2, 32, 96), (3, 32, 96)]
        assert set(sizes) == {32 + 16}  # half of 32 are added
        whole = learner.replay.whole()
        assert len(whole) == 40 * 4
        assert all(any(torch.equal(obs, seen) for seen in whole["obs"]) for obs in batch["obs"][-16:])
        assert method.ledger.env_steps == 120 + 40 * 4


def test_must_3_what_was_imagined_stays_as_its_buffer_grows() -> None:
    with built("lift") as method:
        advance(method, 120)
        learner = tuned(method)
        for _ in range(2 * 2):  # the rounds of the first epoch
            method.update(method.collect())
        before = learner.imagined.whole()
        method.collect()  # an epoch begins, and its first round
        after, played = learner.imagined.whole(), learner.replay.whole()[-40:]
        assert (len(before), len(after)) == (32, 96)
        assert torch.equal(after["obs"][:24], before["obs"][-24:])  # 104 in all, of which the first 8 are gone
        assert torch.equal(after["next_obs"][24:64], played["next_obs"])


def test_must_2_what_the_model_learns_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the simulators single decisions, of the target windows of all before the epoch is played; actions in Nm."""
    fits: list[dict[str, Any]] = []

    class Noted(Fitting):
        def __init__(self, model: Any, data: Any, **how: Any) -> None:
            fits.append({"data": data, **how})
            super().__init__(model, data, **how)

    for module in (lift, lift_finetune):
        monkeypatch.setattr(module, "Fitting", Noted)
    with built("lift") as method:
        assert isinstance(method, LIFT)
        advance(method, 118)
        assert not fits
        first: Any = method.learner
        advance(method, 120)
        stored = first.source.replay.whole()
        for _ in range(2 * 2 + 1):
            method.update(method.collect())
        played = tuned(method).replay.whole()
        assert [each["data"]["action"].shape[:2] for each in fits] == [(120, 1), (40 - 1, 2), (80 - 1, 2)]
        torch.testing.assert_close(fits[0]["data"]["action"][:, 0], 2 * stored["action"])
        for fit in fits[1:]:
            for step in range(2):
                rows = slice(step, step + len(fit["data"]))
                torch.testing.assert_close(fit["data"]["action"][:, step], 2 * played["action"][rows])
                assert torch.equal(fit["data"]["next_obs"][:, step], played["next_obs"][rows])
        assert fits[0]["config"].epochs == method.config.pretrain_epochs == 1
        assert all(fit["optimizer"] is method.model_optimizer for fit in fits)


def test_must_4_large_batches_many_steps() -> None:
    with made("lift", simulators=4, **{"pretrain.warmup": 8, "pretrain.updates_per_step": 3}) as method:
        counts = []
        for _ in range(9):
            assert len(method.collect()) == 32
            counts.append(method.ledger.env_steps)
        assert (
            counts == [12] * 3 + [16] * 3 + [20] * 3
        )  # two steps of all rows in the warm-up, then one for three updates
        source: Any = method.source
        first = source.replay.whole()["action"][:8]
        assert not torch.equal(first, first.clamp(-0.01, 0.01))
        assert source.warmup_actor is None
        assert method.learner.temperature.value.item() == pytest.approx(0.035)
        assert method.learner.temperature.target_entropy.item() == -0.5


def test_must_4_terms_by_hand(float64: None) -> None:
    """Densities in Nm, means over critics, and rows at a time limit that count for nothing, if that is asked for."""
    for truncated in ("bootstrap", "skip"):
        with made("lift", **{"pretrain.truncated": truncated, "pretrain.reward_scale": 3.0}) as method:
            advance(method, 90)
            learner: Any = method.learner
            batch = weigh(method.collect())
            batch["truncated"] = torch.arange(32) % 4 == 0
            batch["terminated"] = torch.arange(32) % 8 == 1
            torch.manual_seed(5)
            target = learner.target(batch)
            torch.manual_seed(5)
            action, log_prob = learner.policy.rsample(batch["next_obs"])
            q = learner.target_critic(batch["next_obs"], action).amin(0)
            soft = q - learner.temperature.value * (log_prob - np.log(2.0))
            torch.testing.assert_close(target, 3 * batch["reward"] + 0.987 * ~batch["terminated"] * soft)
            batch["target"] = target
            square = (learner.critic(batch["obs"], batch["action"]) - target).square()
            kept = ~batch["truncated"] if truncated == "skip" else torch.ones(32)
            loss, _ = learner.critic_loss(batch)
            torch.testing.assert_close(loss, (square * kept).sum() / (2 * 2 * 32))
            torch.manual_seed(6)
            _, metrics = learner.policy_loss(batch)
            torch.manual_seed(6)
            entropy = -learner.policy.rsample(batch["obs"])[1].mean() + np.log(2.0)
            torch.testing.assert_close(metrics["entropy"], entropy)
    with made("lift", **{"pretrain.density": "policy"}) as method:
        assert method.learner.log_scale == 0.0


def stepped(parameters: list[Tensor], loss: Tensor, lr: float, decay: float = 1e-4) -> list[Tensor]:
    """After the first step of AdamW, in which the averages are the gradient and its square."""
    grads = torch.autograd.grad(loss, parameters)
    return [
        parameter.detach() * (1 - lr * decay) - lr * grad / (grad.abs() + 1e-8)
        for parameter, grad in zip(parameters, grads, strict=True)
    ]


@pytest.mark.parametrize("fine", [False, True])
def test_must_4_every_loss_is_of_the_weights_before(fine: bool, float64: None) -> None:
    """In the simulators the others see the new temperature, in the target the one from before."""
    with made("lift") as method:
        advance(method, 130 if fine else 90)
        learner: Any = method.learner
        assert learner.early is not fine
        batch = method.collect()
        for optimizer in (learner.policy_optimizer, learner.critic_optimizer, learner.temperature_optimizer):
            assert isinstance(optimizer, Optimizer)
            optimizer.forget()
        weighed, config = weigh(batch), learner.config
        policy, critic, targets = (
            copy.deepcopy(each) for each in (learner.policy, learner.critic, learner.target_critic)
        )
        log_alpha = learner.temperature.log_alpha.detach().clone().requires_grad_(True)
        torch.manual_seed(9)
        metrics = learner.update(batch)
        torch.manual_seed(9)
        entropy = -policy.rsample(weighed["obs"])[1].detach().mean() + np.log(2.0)
        (tuned_alpha,) = stepped([log_alpha], log_alpha.exp() * (entropy + 0.5), config.entropy.lr)
        alpha = log_alpha.detach().exp() if fine else tuned_alpha.exp()
        with torch.no_grad():
            action, log_prob = policy.rsample(weighed["next_obs"])
            soft = targets(weighed["next_obs"], action).amin(0) - alpha * (log_prob - np.log(2.0))
            y = weighed["reward"] + config.discount * ~weighed["terminated"] * soft
        action, log_prob = policy.rsample(weighed["obs"])
        loss = (alpha * log_prob - critic(weighed["obs"], action).amin(0)).mean()
        wanted_policy = stepped(list(policy.parameters()), loss, config.lr)
        error = critic(weighed["obs"], weighed["action"]) - y
        wanted_critic = stepped(list(critic.parameters()), 0.5 * error.square().mean(), config.critic_lr)
        assert metrics["critic_loss"].item() == pytest.approx(0.5 * error.square().mean().item())
        torch.testing.assert_close(learner.temperature.log_alpha.detach(), tuned_alpha)
        for mine, wanted in ((learner.policy, wanted_policy), (learner.critic, wanted_critic)):
            for one, other in zip(mine.parameters(), wanted, strict=True):
                torch.testing.assert_close(one.detach(), other)
        for one, old, new in zip(learner.target_critic.parameters(), targets.parameters(), learner.critic.parameters()):
            torch.testing.assert_close(one, torch.lerp(old, new, config.tau).detach())


def test_must_5_what_is_handed_on(float64: None) -> None:
    """Networks, targets, averages of Adam and the normalizer, to which both stages add; not the temperature."""
    with made("lift") as method:
        advance(method, 118)
        before: Any = method.learner
        assert isinstance(before, ParallelSAC)
        assert method.policy.normalizer.count == before.source.collected + 64
        model = [value.clone() for value in method.model.parameters()]
        advance(method, 120)
        learner = tuned(method)
        assert learner.policy is before.policy is method.policy
        assert learner.critic is before.critic
        for one, other in zip(learner.target_critic.parameters(), before.target_critic.parameters()):
            assert torch.equal(one, other)
        assert not torch.equal(next(learner.target_critic.parameters()), next(learner.critic.parameters()))
        for name in ("policy_optimizer", "critic_optimizer"):
            mine, its = (getattr(each, name).extra_state() for each in (learner, before))
            assert mine.keys() == its.keys()
            assert len(mine)
            assert all(torch.equal(mine[key], its[key]) for key in mine)
        assert learner.temperature.value.item() == pytest.approx(8e-4)
        assert learner.temperature_optimizer.extra_state() == {}
        assert not any(torch.equal(a, b) for a, b in zip(model, method.model.parameters()))
        assert learner.policy_optimizer.lr == learner.critic_optimizer.lr == 2e-4
        count = float(method.policy.normalizer.count)
        method.collect()
        assert method.policy.normalizer.count == count + 80
        assert learner.target_critic.network.normalizer is method.policy.normalizer


class Loaded(Mechanics):
    """A point that is pushed; the load on it is seen by critics alone."""

    joints, dt = 1, 0.1

    def coordinates(self, obs: Any) -> tuple[Tensor, Tensor]:
        return obs["state"][..., :1], obs["state"][..., 1:]

    def inertia(self, q: Tensor) -> Tensor:
        return torch.ones_like(q).unsqueeze(-1)

    def bias(self, q: Tensor, qd: Tensor) -> Tensor:
        return torch.zeros_like(q)

    def torque(self, action: Tensor, q: Tensor, qd: Tensor) -> Tensor:
        return action

    def observed(self, q: Tensor, qd: Tensor, before: Any, action: Tensor) -> Any:
        return {"load": before["load"], "state": torch.cat([q, qd], -1)}

    def reward(self, before: Any, action: Tensor, after: Any) -> Tensor:
        return -after["state"][..., 0].square()


class Carrying(Simulated):
    """Its world: the load is a force."""

    def __init__(self, *args: Any, horizon: int = 10, **rest: Any) -> None:
        super().__init__(*args, horizon=horizon, **rest)
        parts: Any = {"load": spaces.Box(-1, 1, (1,)), "state": spaces.Box(-np.inf, np.inf, (2,))}
        action = spaces.Box(-0.5, 0.5, (1,))
        self.spec = Spec(spaces.Dict(parts), action, self.name, {"horizon": horizon, "joints": 1})

    def draw(self, generator: torch.Generator, index: int) -> State:
        return {"state": torch.randn(2, generator=generator), "load": torch.rand(1, generator=generator)}

    def begin(self, draws: State) -> State:
        return {name: draws[name] for name in ("load", "state")}

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        after = Loaded().advance(state, action, state["load"])
        return after, Loaded().reward(state, action, after), torch.zeros_like(time, dtype=torch.bool), {}

    def observe(self, state: State, time: Tensor) -> Any:
        return state

    def mechanics(self, **known: float) -> Mechanics:
        return Loaded()


CARRYING = "tests.methods.test_lift:Carrying"


def test_must_5_critics_see_more() -> None:
    settings = {name: value for name, value in LIFT.smoke.config.items() if name != "simulator"}
    method: Any = plan("lift", CARRYING, seed=7, loggers=(), **settings, **{"pretrain.sees": ("state",)}).build()
    advance(method, 240)
    assert method.policy.net.encoder.size == 2
    assert method.critic.network.encoder.size == 3
    learner = tuned(method)
    assert learner.config.sees == ("state",)
    kept: Any = learner.imagined.whole()
    assert len(kept) > 40  # more than was played last
    assert torch.equal(kept["next_obs"]["load"], kept["obs"]["load"])
    start: Any = learner.replay.whole()["obs"][:9]
    seen: Any = method.model.imagine(method.policy, start, 3, noisy=("state",))
    for step in range(3):  # what critics alone see has no noise
        assert torch.equal(seen["next_obs"]["load"][:, step], start["load"])
    obs = {"load": torch.zeros(4, 1), "state": torch.randn(4, 2)}
    one = method.policy.act(obs, greedy=True)[0]["action"]
    other = method.policy.act(obs | {"load": torch.ones(4, 1)}, greedy=True)[0]["action"]
    assert torch.equal(one, other)
    action = torch.zeros(4, 1)
    assert not torch.equal(method.critic(obs, action), method.critic(obs | {"load": torch.ones(4, 1)}, action))


def test_without_a_model_it_is_sac_on_the_target(float64: None) -> None:
    """As the first stage would go on in one row: the same update of the same batch."""
    few = {"warmup": 8, "epoch_steps": 4, "rounds": (2, 2, 1), "round_updates": 3, "batch_size": 16}
    settings = RUN | AS_SAC | NO_MODEL | {f"finetune.{name}": value for name, value in few.items()}
    method: Any = plan("lift", "pendulum", **settings).build()
    learner, batches = tuned(method), []
    assert method.model is None
    assert method.simulator is None
    for _ in range(13):
        batch = method.collect()
        batches.append(batch)
        metrics = method.update(batch)
    assert (method.ledger.env_steps, learner.epoch) == (8 + 3 * 4, 3)
    assert "imagined_reward" not in metrics
    assert {len(batch) for batch in batches} == {16}
    whole = learner.replay.whole()
    modes = method.policy.act(whole["obs"], greedy=True)[0]["action"]
    assert ((whole["action"] - modes).abs() > 1e-6).all()
    shared = {
        name: getattr(learner.config, name) for name in ("discount", "tau", "lr", "critic_lr", "order", "density")
    }
    config = apply(ParallelSAC.Config, shared | {"weight_decay": 0.0, "entropy": learner.config.entropy})
    other = ParallelSAC(
        config, method.task.twin(1), parts=copy.deepcopy({"policy": method.policy, "critic": method.critic})
    )
    for name in ("target_critic", "temperature"):
        getattr(other, name).load_state_dict(getattr(learner, name).state_dict())
    for name in ("policy_optimizer", "critic_optimizer", "temperature_optimizer"):
        getattr(other, name).load_extra_state(getattr(learner, name).extra_state())
    for each in (learner, other):
        torch.manual_seed(3)
        each.update(batches[-1])
    for name in ("policy", "critic", "target_critic", "temperature"):
        for one, same in zip(getattr(learner, name).parameters(), getattr(other, name).parameters(), strict=True):
            assert torch.equal(one, same)


def test_without_a_model_fine_tuning_is_sac_continued(float64: None) -> None:
    """The first stage leaves a policy, critics and averages of Adam to the last one, and to SAC in a world of its own.
    From there on both play, draw and learn alike, bitwise."""
    few = {"warmup": 24, "epoch_steps": 1, "rounds": (1, 1, 1), "round_updates": 1, "batch_size": 16}
    settings = RUN | AS_SAC | NO_MODEL | {f"finetune.{name}": value for name, value in few.items()}
    settings |= {"pretrain_steps": 40, "simulators": 1, "pretrain.warmup": 16, "pretrain.batch_size": 16}
    for stage in ("pretrain", "finetune"):  # a learned temperature would begin anew
        settings |= {f"{stage}.{name}": value for name, value in CONSTANTS.items() if "entropy" not in name}
        settings |= {f"{stage}.entropy": "fixed", f"{stage}.entropy.value": 0.2}
    method: Any = plan("lift", "pendulum", **settings).build()
    sac: dict[str, Any] = {"warmup": 24, "batch_size": 16, "network.sizes": (16, 16), "replay_size": 1_000}
    other: Any = plan("sac", "pendulum", **RUN, **sac, **{"entropy": "fixed", "entropy.value": 0.2}).build()
    other.source.warmup_actor = None  # its own policy fills the replay
    advance(method, 40)
    learner = tuned(method)
    for name in ("policy", "critic", "target_critic"):
        getattr(other, name).load_state_dict(getattr(learner, name).state_dict())
    for name in ("policy_optimizer", "critic_optimizer"):
        getattr(other, name).load_extra_state(getattr(learner, name).extra_state())
    assert len(learner.policy_optimizer.extra_state())
    other.source.replay.generator.set_state(learner.replay.generator.get_state())
    for each in (method, other):
        torch.manual_seed(3)
        for _ in range(8):
            each.update(each.collect())
    assert other.ledger.env_steps == method.ledger.env_steps - 40 == 24 + 8
    played = learner.replay.whole()
    for key, value in other.source.replay.whole().items():
        assert torch.equal(value, played[key]), key
    for name in ("policy", "critic", "target_critic"):
        for one, same in zip(getattr(learner, name).parameters(), getattr(other, name).parameters(), strict=True):
            assert torch.equal(one, same), name


def test_a_run_goes_on_from_a_pretrained_one(tmp_path: Any) -> None:
    smoke = {name: value for name, value in LIFT.smoke.config.items() if name != "simulators"}
    smoke |= {"pretrain_steps": 0, "finetune.lr": 1e-12, "finetune.critic_lr": 1e-12, "init": str(tmp_path / "a")}
    options: dict[str, Any] = {"task_options": {"horizon": 20}, "loggers": (), "eval_episodes": 1}
    polopt.train("lift", "pendulum", steps=120, seed=1, out=tmp_path / "a", **options, **LIFT.smoke.config)
    second = polopt.train("lift", "pendulum", steps=70, seed=2, out=tmp_path / "b", **options, **smoke)
    assert {row["stage"] for row in second.rows} == {"fine-tune"}
    start, end = (polopt.load(tmp_path / name) for name in "ab")
    for one, other in zip(start.parameters(), end.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("preset", "steps"), [("t1-real", 40e6), ("t1-rough", 5e9), ("t1-flat", 5e9)])
def test_presets_build(preset: str, steps: float) -> None:
    tiny: Any = {"simulators": 2, "envs": 1, "pretrain.network.sizes": (8,), "pretrain.critic_network.sizes": (8,)}
    tiny |= {"model.network.sizes": (8,), "model.weight_decay": (1e-4,)}
    method: Any = plan("lift", CARRYING, preset=preset, loggers=(), **tiny).build()
    assert method.config.pretrain_steps == steps
    assert method.learner.config.truncated == "skip"
    assert method.learner.config.batch_size >= 4_096


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"finetune.horizon": (1, 2)}, "horizon is first, last, no less than that, and the number of epochs"),
        ({"finetune.rounds": (4, 2, 1)}, "rounds is first, last, no less than that, and the number of epochs"),
        ({"finetune.rounds": (0, 2, 1)}, "an epoch has at least one round"),
        ({"finetune.horizon": (0, 2, 1)}, "a horizon is at least 1 in every epoch"),
        ({"finetune.horizon": (0, 0, 1), "finetune.starts": 5}, "starts"),
        ({"finetune.horizon": (0, 0, 1), "dynamics": "changes"}, "dynamics"),
        ({"pretrain_steps": 0, "simulators": 5}, "simulators"),
        ({"pretrain.entropy": "fixed", "pretrain.entropy_share": 0.1}, "entropy_share"),
    ],
)
def test_what_does_not_fit_is_refused(settings: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        apply(LIFT.Config, settings)


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        ("pendulum", {"simulator": (0.5,)}, "simulator has 1 numbers for the 2 parameters of pendulum"),
        ("Pendulum-v1", {}, "lift imagines with known mechanics, and those of Pendulum-v1 are not"),
        ("pendulum", {"pretrain.sees": ("state",)}, "the policy cannot see 'state'"),
        ("pendulum", {"pretrain.network.recurrent": "gru"}, "a recurrent policy cannot learn from"),
        ("pendulum", {"pretrain.policy": "deterministic"}, "lift needs a policy that has a density for any action"),
    ],
)
def test_tasks_and_policies_that_do_not_fit_are_refused(task: str, settings: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        plan("lift", task, loggers=(), **SMALL | settings).build()
