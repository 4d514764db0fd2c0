"""GoRL on four goals: what PPO finds in the latent space goes over into the flow, and from there noise alone finds it.

A point starts in the middle of a square and moves for at most 30 steps, up to 1 along each axis; four goals are 5 away
along the axes. Each step pays minus the distance to the nearest one and minus 0.1 |action|^2, and 10 within 1 of a
goal, where the episode ends. Rewards are times 0.1 while training; numbers here are of rewards as they are. GoRL has
three encoders and two decoders: 57,600 steps each for the first two encoders, 15,360 for what each decoder learns
from, and what is left for the last encoder. `prior` is the method: the flow begins at noise of the prior. `coupled`
fits it to the latents that the encoder drew (`--decoder-source encoder`). `gaussian` is PPO for as many steps.
Networks, rates, batches and clipping are the same for all.

Over 256 episodes with actions drawn as while training: `return`, and `goals`, `goal_entropy`, `missed`. `prior_return`
is that of standard normal latents through the decoder, the encoder left out, and `gained` by how much it is above that
of the first stage, where the decoder is the identity. Each is a mean over looks in the last fifth of the run, all in
the last stage.

What perfect code gets: a flow that learned p(a|s) of a policy that reaches a goal at once (-0.4) reaches it from noise
alone, and the next encoder begins where the last one ended. Where the source is the pair's own latent, stage 0 has e =
a: the velocity is 0, the decoder stays the identity, and standard normal latents get what tanh of noise gets. A
decoder that is not handed over, or fitted to latents in place of actions, does the same.

Pilot, seed 1000: `return` -0.65 with `prior` and -1.5 with `coupled`, `prior_return` -0.80 and -86, which is the
identity's. Thresholds are at half of that. Both end at one goal: that PPO finds several is not what the turns are for.
"""

from __future__ import annotations

from typing import Any

from polopt.claims import Above, Claim, Greater
from polopt.claims.goals import AtGoals, at_goals, where_it_goes

SAME: dict[str, Any] = {
    "envs": 128,
    "window": 30,
    "epochs": 5,
    "minibatches": 4,
    "lr": 1e-3,
    "lr_schedule": "constant",
    "discount": 0.99,
    "entropy_coefficient": 0.01,
    "adam_eps": 1e-8,
    "surrogate.clip_low": 0.3,
    "surrogate.clip_high": 0.3,
    "value_clip": None,
    "network.sizes": (64, 64),
    "network.activation": "tanh",
    "critic_network": None,
}
STAGES: dict[str, Any] = {
    "stage_steps": (57_600, 57_600),
    "normalize_obs": False,
    "decoder_windows": 4,
    "decoder_epochs": 20,
    "decoder_batch": 512,
    "decoder_draws": 2,
    "decoder_lr": 1e-3,
    "policy.normalize_decoder": False,
    "policy.decoder_network.sizes": (64, 64),
}


def with_and_without_the_encoder(learner: Any, task: Any) -> dict[str, float]:
    """Where the policy goes, what noise alone gets through its decoder, and without one."""
    from polopt.evaluation.goals import goal_scores
    from polopt.policies.decoded_policy import FromPrior

    policy = learner.policy
    decoder, found = policy.decoder, where_it_goes(learner, task)
    found["prior_return"] = goal_scores(FromPrior(policy), task)["return"]
    policy.decoder = None
    found["gained"] = found["prior_return"] - goal_scores(FromPrior(policy), task)["return"]
    policy.decoder = decoder
    return found


def gorl(source: str) -> AtGoals:
    return at_goals("gorl", with_and_without_the_encoder, decoder_source=source, **STAGES, **SAME)


CLAIM = Claim(
    method="gorl",
    statement="on four goals noise of the prior, through the last decoder, gets far more than through the first, and "
    "than through one that was fitted to the latents of its encoders; GoRL ends as high as PPO",
    budget={"env_steps": 203_520},
    quick={"env_steps": 203_520},
    seeds=5,
    minutes=8,
    arms={"prior": gorl("prior"), "coupled": gorl("encoder"), "gaussian": at_goals("ppo", **SAME)},
    expect=(
        Above("return", "gaussian", -15.0, control=True),
        Above("gained", "prior", 40.0),
        Greater("prior_return", "prior", "coupled", by=40.0),
        Greater("return", "prior", "gaussian", by=-7.0),
    ),
)
