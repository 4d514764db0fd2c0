"""GoRL: what is scored, what the decoder is fitted to, and who rests when."""

import math

import pytest
import torch
from tensordict import TensorDict
from torch.distributions import Normal

from polopt.config import apply
from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.methods.control.gorl import DecoderFit, GoRL, LatentPPO
from polopt.policies.decoded_policy import FromPrior
from tests.guards.harness import advance, built

MUST = 5
ALONE = {"stage_steps": (), "policy.decoder": None}


def until(method, stage):
    """Updates until the stage of this name begins; returns their metrics."""
    found = []
    while method.stage_name != stage:
        found += advance(method, method.ledger.env_steps + 10**6, updates=1)
    return found


def weights(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


def same(one, other):
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def scrambled(decoder):
    with torch.no_grad():
        for number, parameter in enumerate(decoder.parameters()):
            parameter.normal_(0.0, 0.7, generator=torch.Generator().manual_seed(number))


# The policy


def test_must_3_a_new_decoder_gives_latents_back(float64):
    with built("gorl") as method:
        obs, latent = torch.randn(6, 3), 3.0 * torch.randn(6, 1)
        assert torch.equal(method.policy.decode(obs, latent), latent)
        record, _ = method.policy.act(obs)
        assert torch.equal(record["pre_action"], record["latent"])


def test_decoding_is_eulers_method_from_time_1_and_is_not_clamped(float64):
    with built("gorl") as method:
        policy = method.policy
        policy.decoder.velocity = lambda features, x, time: 2.0 * x + time
        x = 3.0
        for time in (1.0, 0.5):  # two steps
            x -= 0.5 * (2.0 * x + time)
        decoded = policy.decode(torch.zeros(1, 3), torch.tensor([[3.0]]))
        assert decoded.item() == pytest.approx(x)
        policy.decoder.velocity = lambda features, x, time: -x
        assert policy.decode(torch.zeros(1, 3), torch.tensor([[3.0]])).item() == pytest.approx(3.0 * 1.5**2)


def test_must_2_what_is_scored_is_the_latent(float64):
    with built("gorl") as method:
        policy = method.policy
        scrambled(policy.decoder)
        batch = method.collect()
        mean, raw = policy.net(batch["obs"]).chunk(2, -1)
        std = (math.log(2.0) + 1e-3) * raw.exp()
        normal = Normal(mean, std)
        expected = normal.log_prob(batch["latent"]).sum(-1)
        torch.testing.assert_close(batch["log_prob"], expected.detach())
        torch.testing.assert_close(policy.log_prob(batch), expected)
        log_prob, entropy = policy.score(batch)
        torch.testing.assert_close(log_prob, expected)
        torch.testing.assert_close(entropy, normal.entropy().sum(-1))
        torch.testing.assert_close(policy.entropy(batch), entropy)
        torch.testing.assert_close(batch["action"], policy.decode(batch["obs"], batch["latent"]).tanh())
        assert (batch["action"] - batch["latent"].tanh()).abs().max() > 0.05
        assert not any(parameter.requires_grad for parameter in policy.decoder.parameters())
        learner = method.learner
        rewarded = learner.evaluate_window(batch)
        loss, _ = learner.total_loss(rewarded)
        rewarded["action"] = torch.full_like(rewarded["action"], math.nan)  # nothing reads it
        torch.testing.assert_close(learner.total_loss(rewarded)[0], loss)


def test_greedy_decodes_the_mean(float64):
    with built("gorl") as method:
        scrambled(method.policy.decoder)
        obs = torch.randn(5, 3)
        mean, _ = method.policy.moments(obs)
        record, _ = method.policy.act(obs, greedy=True)
        torch.testing.assert_close(record["action"], method.policy.decode(obs, mean).tanh())


def test_must_5_the_std_is_clamped(float64):
    with built("gorl") as method, torch.no_grad():
        for shift, std in ((50.0, 10.0), (-50.0, 1e-3)):
            list(method.policy.net.parameters())[-1].fill_(shift)
            log_std = method.policy.moments(torch.zeros(1, 3))[1]
            torch.testing.assert_close(log_std.exp(), torch.full_like(log_std, std))


def test_the_prior_is_standard_normal_whatever_the_encoder_says():
    with built("gorl") as method:
        with torch.no_grad():
            list(method.policy.net.parameters())[-1].fill_(2.0)
        obs = torch.zeros(20_000, 3)
        record, _ = FromPrior(method.policy).act(obs)
        assert record["latent"].mean().item() == pytest.approx(0.0, abs=0.03)
        assert record["latent"].std().item() == pytest.approx(1.0, abs=0.02)
        assert torch.equal(record["action"], record["latent"].tanh())


# The encoder


def test_must_5_the_latent_penalty_by_hand(float64):
    with built("gorl", latent_penalty=0.5) as one, built("gorl", latent_penalty=0.0) as other:
        assert isinstance(one.learner, LatentPPO)
        batch = one.learner.evaluate_window(one.collect())
        other.policy.load_state_dict(one.policy.state_dict())
        other.learner.critic.load_state_dict(one.learner.critic.state_dict())
        mean, log_std = one.policy.moments(batch["obs"])
        size = (mean.square() + log_std.exp().square()).mean()  # one coordinate, rows of equal weight
        gap = one.learner.policy_loss(batch)[0] - other.learner.policy_loss(batch)[0]
        torch.testing.assert_close(gap, 0.5 * size)
        torch.testing.assert_close(one.learner.policy_loss(batch)[1]["latent_size"], size)


# The decoder


def test_must_1_the_noise_is_that_of_the_prior(float64):
    rows = TensorDict(
        {"obs": torch.randn(4_000, 3), "action": torch.randn(4_000, 1), "latent": torch.full((4_000, 1), 7.0)}, [4_000]
    )
    with built("gorl") as method:
        fit = method.stage(1).method
        noise = fit.drawn(rows)["noise"]
        assert noise["noise"].shape == noise["time"].shape == (4_000, 2, 1)
        assert noise["noise"].mean().item() == pytest.approx(0.0, abs=0.05)
        assert noise["noise"].std().item() == pytest.approx(1.0, abs=0.05)
        assert not torch.equal(noise["noise"][:, 0], noise["noise"][:, 1])
        time = noise["time"]
        assert (time.mean().item(), time.min().item() >= 0, time.max().item() <= 1) == (
            pytest.approx(0.5, abs=0.03), True, True,
        )  # fmt: skip
    with built("gorl", decoder_source="encoder") as method:
        noise = method.stage(1).method.drawn(rows)["noise"]
        assert (noise["noise"] == 7.0).all()
        assert noise["time"].std() > 0.2


def test_the_decoder_is_fitted_by_flow_matching(float64):
    with built("gorl") as method:
        fit = method.stage(1).method
        assert isinstance(fit, DecoderFit)
        scrambled(fit.policy)
        rows = weigh(
            TensorDict({"obs": torch.randn(5, 3), "action": torch.randn(5, 1), "latent": torch.zeros(5, 1)}, [5])
        )
        batch = fit.drawn(rows)
        loss, _ = fit.decoder_loss(batch)
        noise, time = batch["noise"]["noise"], batch["noise"]["time"]
        total = 0.0
        for row in range(5):
            for draw in range(2):
                e, t, a = noise[row, draw], time[row, draw], rows["action"][row]
                features = fit.policy.net.features(rows["obs"][row])
                velocity = fit.policy.net.predict(features, t * e + (1 - t) * a, t)
                total += (velocity - (e - a)).square().item() / 10
        assert loss.item() == pytest.approx(total)


def test_an_update_of_the_decoder_is_one_step_on_all_rows_of_its_batch(float64):
    rows = TensorDict({"obs": torch.randn(5, 3), "action": torch.randn(5, 1), "latent": torch.zeros(5, 1)}, [5])
    with built("gorl") as method:
        fit, seen = method.stage(1).method, []
        fit.optimizer.minimize = lambda loss, batch: seen.append((loss, batch)) or {}
        fit.update(rows)
        ((loss, batch),) = seen
        assert loss == fit.decoder_loss
        assert torch.equal(batch["action"], rows["action"])
        torch.testing.assert_close(batch["weight"], torch.full((5,), 0.2))


def test_pairs_are_actions_before_the_tanh_clipped(float64):
    with built("gorl", decoder_clip=1.5) as method:
        until(method, "decoder")
        fit = method.learner
        window = TensorDict(
            {
                "obs": torch.randn(2, 3, 3),
                "latent": torch.randn(2, 3, 1),
                "action": torch.zeros(2, 3, 1),
                "pre_action": torch.tensor([[[0.5], [2.0], [-9.0]], [[1.0], [1.5], [-1.0]]]),
            },
            [2, 3],
        )
        rows = fit.pairs(window)
        assert rows["action"].flatten().tolist() == [0.5, 1.5, -1.5, 1.0, 1.5, -1.0]
        assert torch.equal(rows["latent"], window["latent"].reshape(6, 1))
        torch.testing.assert_close(fit.policy.net.normalizer.mean, window["obs"].reshape(6, 3).mean(0))


# Stages


def test_must_4_encoder_and_decoder_take_turns(float64):
    with built("gorl", stage_steps=(128, 64)) as method:
        policy = method.policy
        begun = weights(policy.net)
        first = until(method, "decoder")
        assert len(first) == 2
        assert method.ledger.env_steps == 128
        assert policy.decode(torch.zeros(1, 3), torch.ones(1, 1)).item() == 1.0  # it rested
        encoder = weights(policy.net)
        assert not same(begun, encoder)
        fitted = []
        while method.stage_name == "decoder":
            before = weights(method.decoder)
            fitted += advance(method, 10**6, updates=1)
            assert not same(before, weights(method.decoder)) or method.stage_name == "encoder"
            if method.stage_name == "decoder":
                assert same(encoder, weights(policy.net))
                assert policy.decode(torch.zeros(1, 3), torch.ones(1, 1)).item() == 1.0
        assert len(fitted) == 4
        assert method.ledger.env_steps == 128 + 64
        assert all(set(metrics) >= {"decoder_loss"} for metrics in fitted)
        assert same(weights(policy.decoder), weights(method.decoder))
        assert policy.decode(torch.zeros(1, 3), torch.ones(1, 1)).item() != 1.0
        mean, log_std = policy.moments(torch.zeros(1, 3))
        assert not same(encoder, weights(policy.net))
        assert abs(mean.item()) < 0.7
        assert 0.3 < log_std.exp().item() < 1.5
        decoder = weights(policy.decoder)
        until(method, "decoder")
        assert same(decoder, weights(policy.decoder))
        head = [value for name, value in method.decoder.named_parameters() if "trunk" in name][-2:]
        assert all(value.abs().max() == 0 for value in head)  # a new one, not the old one again
        until(method, "encoder")
        assert method.stage(5) is None
        assert method.stage(4).until == {}
        assert not same(decoder, weights(policy.decoder))


def test_must_4_without_a_reset_the_encoder_goes_on(float64):
    with built("gorl", reset_encoder=False) as method:
        until(method, "decoder")
        encoder = weights(method.policy.net)
        until(method, "encoder")
        assert same(encoder, weights(method.policy.net))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"policy.decoder": None}, "stages are for a decoder, and policy.decoder is none"),
        ({"stage_steps": ()}, "with one stage no decoder is trained"),
        (ALONE | {"decoder_lr": 1.0}, "decoder_lr has no effect with one stage"),
        (ALONE | {"reset_encoder": False}, "reset_encoder has no effect with one stage"),
        ({"policy.decoder.greedy": "center"}, "policy.decoder.greedy has no effect on a decoder"),
        ({"policy.decoder_network.head_gain": 0.5}, "policy.decoder_network.head_gain has no effect on a decoder"),
        ({"policy.log_std_low": 3.0}, "log_std_low 3 must be below log_std_high 2.3"),
    ],
)
def test_what_cannot_be_is_said(settings, sentence):
    with pytest.raises(UsageError, match=f"^{sentence}"):
        apply(GoRL.Config, settings)
