"""The stage of four goals: what an arm measures, and what tells it from others."""

from polopt.claims.goals import at_goals
from polopt.claims.keys import describe_arm, digest


def looked(learner, task):
    return {"steps": float(learner.ledger.env_steps), "rows": float(task.num), "scale": learner.task.scale}


def test_looks_are_in_the_last_fifth_and_averaged():
    arm = at_goals("ppo", looked, envs=2, window=5, minibatches=1, epochs=1)
    found = arm(3, {"env_steps": 250})
    assert found == {"steps": (210 + 220 + 230 + 240 + 250) / 5, "rows": 256.0, "scale": 0.1}
    assert arm.trains == ("ppo",)


def test_a_policy_is_looked_at_in_rewards_as_they_are():
    found = at_goals("ppo", envs=2, window=5, minibatches=1, epochs=1)(3, {"env_steps": 50})
    assert found.keys() == {"return", "goals", "goal_entropy", "missed"}
    assert -400 < found["return"] < -20  # it has learned nothing; a tenth of the reward would be above


def test_arms_that_look_elsewhere_have_other_keys():
    one, other = at_goals("ppo"), at_goals("ppo", looked)
    assert digest(describe_arm(one)) == digest(describe_arm(at_goals("ppo")))
    assert len({digest(describe_arm(each)) for each in (one, other, at_goals("ppo", lr=1e-3))}) == 3
