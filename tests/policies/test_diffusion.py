import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from polopt.core.errors import UsageError
from polopt.networks import Network
from polopt.networks.denoisers import Conv, DiT, Flat
from polopt.networks.dit import DiTDenoiser
from polopt.networks.normalizer import Normalizer
from polopt.policies import Diffusion
from polopt.policies.base import Density, Field, Imitates, Reparameterized, Scores, require
from polopt.policies.fields import sample
from polopt.regularizers import KLPenalty
from polopt.training import api
from tests.policies.generative import NETWORK, SPEC, batch_of, compiled_difference, imitate, shares, two_modes


def make(**options):
    return Diffusion(**options).build(SPEC, NETWORK)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 4), st.sampled_from(["vp", "linear", "cosine"])
)
def test_shapes(lead, steps, schedule):
    policy = make(steps=steps, schedule=schedule)
    batch = batch_of(*lead)
    record, carry = policy.act(batch["obs"])
    assert carry == {}
    assert record["action"].shape == (*lead, 2)
    assert float(record["action"].abs().max()) <= 1.0
    assert record["chain"].shape == (*lead, steps + 1, 2)
    assert record["log_prob"].shape == (*lead, steps)
    recorded = batch.clone().update(record)
    assert policy.log_prob(recorded).shape == (*lead, steps)
    assert policy.entropy(recorded).shape == (*lead, steps)
    assert policy.imitation_loss(batch).shape == tuple(lead)
    action, log_prob = policy.rsample(batch["obs"], 3)
    assert log_prob is None
    assert action.shape == (3, *lead, 2)
    assert policy.field(batch["obs"], batch["action"], torch.full((*lead, 1), 0.5)).shape == (*lead, 2)


def test_what_it_promises_depends_on_the_noise_of_the_last_step():
    assert isinstance(make(), (Scores, Reparameterized, Imitates, Field))
    assert not isinstance(make(), Density)
    for options in ({"min_std": 0.0}, {"sampler": "ddim"}):
        with pytest.raises(UsageError, match=r"ppo needs a policy that scores .* last step has no noise does not"):
            require(make(**options), Scores, by="ppo")


@pytest.mark.parametrize("lead", [(7,), (3, 4)])
def test_the_chain_scored_again_is_what_was_recorded(lead, float64):
    policy = make(steps=4)
    batch = batch_of(*lead)
    batch.update(policy.act(batch["obs"])[0])
    assert torch.equal(policy.log_prob(batch), batch["log_prob"])
    flat = batch.reshape(-1)
    torch.testing.assert_close(policy.log_prob(flat), flat["log_prob"], rtol=0, atol=1e-12)
    assert torch.equal(batch["action"], batch["chain"][..., -1, :].clamp(-1, 1))


def test_the_chain_is_ddpm_by_hand(float64):
    """Every step from the released code's formulas, in numpy, with the network as a black box."""
    policy = make(steps=3, min_std=0.05)
    batch = batch_of(5)
    batch.update(policy.act(batch["obs"])[0])
    number = np.arange(1, 4)
    alphas = np.exp(-0.1 / 3 - 0.5 * (10 - 0.1) * (2 * number - 1) / 9)
    betas, cumulative = 1 - alphas, np.cumprod(alphas)
    chain = batch["chain"].numpy()
    for index, step in enumerate((2, 1, 0)):
        x, after = chain[:, index], chain[:, index + 1]
        time = torch.full((5, 1), (step + 1) / 3)
        features = policy.net.features(batch["obs"])
        noise = policy.net.predict(features, torch.from_numpy(x), time).detach().numpy()
        before = cumulative[step - 1] if step else 1.0
        start = np.clip((x - np.sqrt(1 - cumulative[step]) * noise) / np.sqrt(cumulative[step]), -1, 1)
        mean = betas[step] * np.sqrt(before) / (1 - cumulative[step]) * start
        mean = mean + (1 - before) * np.sqrt(alphas[step]) / (1 - cumulative[step]) * x
        std = max(np.sqrt(betas[step] * (1 - before) / (1 - cumulative[step])), 0.05)
        score = (-0.5 * ((after - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)).sum(-1)
        assert batch["log_prob"][:, index].numpy() == pytest.approx(score, rel=1e-9)
    stds = policy.stds.clamp_min(0.05).numpy()
    entropy = 2 * (np.log(stds) + 0.5 * np.log(2 * math.pi * math.e))
    assert policy.entropy(batch).numpy() == pytest.approx(np.tile(entropy, (5, 1)))


def test_chosen_steps_of_a_chain_are_scored_alone(float64):
    policy, batch = make(steps=6), batch_of(3, 4)
    batch.update(policy.act(batch["obs"])[0])
    step = torch.randint(6, (3, 4, 2))
    chosen = policy.log_prob(batch, TensorDict({"step": step}, [3, 4]))
    whole = policy.log_prob(batch)
    torch.testing.assert_close(chosen, whole.gather(-1, step), rtol=1e-10, atol=1e-10)
    weight = torch.randn(3, 4, 2)
    gradients = [
        torch.autograd.grad((weight * scores).sum(), list(policy.parameters()))
        for scores in (chosen, whole.gather(-1, step))
    ]
    torch.testing.assert_close(*gradients)
    drawn = policy.draw_noise(batch)  # noise of the imitation loss has no steps: it changes no scores
    assert torch.equal(policy.log_prob(batch, drawn), whole)


def test_no_step_explores_beyond_the_ceiling(float64):
    policy = make(steps=3, schedule="linear", min_std=0.05, max_std=0.2)
    raw = policy.stds.tolist()
    assert raw[0] > 0.2 > 0.05 > raw[-1]
    assert policy.log_stds.exp().tolist() == pytest.approx([0.2, min(max(raw[1], 0.05), 0.2), 0.05])
    obs = torch.zeros(4000, 3)
    chain = policy.act(obs)[0]["chain"]
    moved = chain[:, 1] - policy.next_mean(policy.net.features(obs), chain[:, 0], 0)
    assert float(moved.std()) == pytest.approx(0.2, rel=0.05)
    free = make(steps=3, schedule="linear", min_std=0.05)
    free.load_state_dict(policy.state_dict())
    for each in (policy, free):  # what is not exploration has no ceiling
        torch.manual_seed(4)
        each.sampled = each.rsample(obs)[0]
    assert torch.equal(policy.sampled, free.sampled)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_std": 0.05}, "max_std must be at least min_std, and 0.05 is below 0.1"),
        ({"max_std": 0.5, "min_std": 0.0}, "max_std has no effect where steps are not scored"),
        ({"max_std": 0.5, "sampler": "ddim"}, "max_std has no effect where steps are not scored"),
    ],
)
def test_a_ceiling_that_cannot_be_is_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        Diffusion(**options)


@pytest.mark.parametrize("denoiser", [DiT(16, 1, 2, token_size=1), Conv((8, 8), 3)], ids=["dit", "conv"])
def test_the_network_may_be_another_denoiser(denoiser, float64):
    policy, batch = make(steps=2, denoiser=denoiser), batch_of(8)
    batch.update(policy.act(batch["obs"])[0])
    torch.testing.assert_close(policy.log_prob(batch), batch["log_prob"])
    step = torch.tensor([[0], [1]] * 4)
    chosen = policy.log_prob(batch, TensorDict({"step": step}, [8]))
    torch.testing.assert_close(chosen, batch["log_prob"].gather(-1, step))
    first = policy.imitation_loss(two_modes(512)).mean()
    imitate(policy, 60, size=64)
    assert policy.imitation_loss(two_modes(512)).mean() < 0.7 * first


def test_denoisers_are_chosen_by_name():
    settings = {"demonstrations": "random", "policy": "diffusion", "loggers": ()}
    settings |= {"policy.denoiser": "dit", "policy.denoiser.depth": 1, "policy.denoiser.width": 8}
    method = api.plan("bc", "Pendulum-v1", seed=1, **settings).build()
    assert isinstance(method.policy.net, DiTDenoiser)
    assert len(method.policy.net.transformer.blocks) == 1
    assert api.plan("bc", "Pendulum-v1", policy="diffusion").config.policy.denoiser == Flat()


def test_the_imitation_loss_is_the_error_of_the_noise(float64):
    policy, batch = make(steps=5), batch_of(6)
    noise = policy.draw_noise(batch)
    assert set((noise["time"] * 5).round().flatten().tolist()) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    alpha = torch.exp(-0.5 * (0.1 * noise["time"] + 4.95 * noise["time"] ** 2))
    x = alpha * batch["action"] + (1 - alpha**2).sqrt() * noise["noise"]
    predicted = policy.net.predict(policy.net.features(batch["obs"]), x, noise["time"])
    expected = ((predicted - noise["noise"]) ** 2).mean(-1)
    torch.testing.assert_close(policy.imitation_loss(batch, noise), expected)
    times = torch.full((6, 1), 0.3)
    assert torch.equal(policy.draw_noise(batch, times)["time"], times)
    torch.manual_seed(3)
    drawn = policy.imitation_loss(batch)
    torch.manual_seed(3)
    assert torch.equal(drawn, policy.imitation_loss(batch, policy.draw_noise(batch)))


def test_ddim_is_deterministic_given_its_noise_and_follows_the_field(float64):
    policy = make(sampler="ddim", steps=6, greedy="center")
    obs = torch.randn(4, 3)
    x = torch.randn(4, 2)
    features = policy.net.features(obs)
    once, again = (policy.generate(features, x.unsqueeze(-2)) for _ in range(2))
    assert torch.equal(once, again)
    expected = sample(policy, obs, x, torch.linspace(1, 0, 7)).clamp(-1, 1)
    torch.testing.assert_close(once, expected)
    greedy = policy.act(obs, greedy=True)[0]["action"]
    assert torch.equal(greedy, policy.act(obs, greedy=True)[0]["action"])
    assert torch.equal(greedy, policy.generate(features, torch.zeros(4, 1, 2)))
    sampled = make(sampler="ddim")
    assert not torch.equal(*(sampled.act(obs, greedy=True)[0]["action"] for _ in range(2)))


def test_the_noise_of_a_batch_is_that_of_its_pieces(float64):
    policy, obs = make(steps=3), torch.randn(32, 3)
    torch.manual_seed(5)
    whole, _ = policy.rsample(obs)
    torch.manual_seed(5)
    pieces = [policy.rsample(part)[0] for part in obs.split(16)]
    torch.testing.assert_close(torch.cat(pieces), whole)


def test_gradients_reach_every_parameter_through_the_chain():
    policy = make(steps=3)
    action, _ = policy.rsample(torch.randn(64, 3))
    action.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in policy.parameters())


def test_it_imitates_both_modes():
    torch.manual_seed(1)
    policy = Diffusion(schedule="cosine", steps=10, min_std=0.0).build(SPEC, Network((64, 64), "mish"))
    imitate(policy, 600)
    one, other, elsewhere = shares(policy)
    assert min(one, other) > 0.3
    assert elsewhere < 0.15


def test_the_loss_compiles_in_one_graph():
    assert compiled_difference(make(), batch_of(8)) < 1e-6


def test_recurrent_networks_are_refused_and_observations_normalized():
    with pytest.raises(UsageError, match="a diffusion policy is feed-forward: set the network's recurrent to none"):
        Diffusion().build(SPEC, Network((8,), recurrent="gru"))
    policy = Diffusion().build(SPEC, NETWORK, Normalizer(SPEC.obs))
    batch = two_modes(32)
    batch["obs"] = 5.0 + torch.randn(32, 3)
    policy.update_normalizer(batch)
    torch.manual_seed(0)
    one = policy.rsample(batch["obs"])[0]
    policy.update_normalizer(TensorDict({"obs": torch.randn(64, 3)}, [64]))
    torch.manual_seed(0)
    assert not torch.equal(one, policy.rsample(batch["obs"])[0])


def test_actions_are_rescaled_at_the_environment():
    policy = make()
    action = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    assert policy.env_action(action).tolist() == [[-2, 0], [2, 5], [0, 2.5]]
    torch.testing.assert_close(policy.own_action(policy.env_action(action)), action)
    assert SPEC.action.contains(policy.predict(np.zeros(3, np.float32)))


@pytest.mark.parametrize(
    ("method", "settings", "sentence"),
    [
        ("ppo", {"kl_penalty": KLPenalty()}, "ppo with an exact KL divergence needs a policy that has a density"),
        ("sac", {}, "sac needs a policy that has a density for any action, and a diffusion policy does not"),
        ("bc", {"entropy_coefficient": 0.1, "policy": Diffusion(sampler="ddim")}, "bc with an entropy bonus needs"),
    ],
)
def test_what_a_chain_cannot_serve_is_refused(method, settings, sentence):
    settings = {"policy": "diffusion", "loggers": ()} | settings
    if method == "bc":
        settings["demonstrations"] = "random"
    with pytest.raises(UsageError, match=sentence):
        api.plan(method, "Pendulum-v1", seed=1, **settings).build()
