"""What SL-MGAC says of itself besides its mathematics."""

from polopt.bases.settings import Settings, Smoke, Study


class SLMGACSettings(Settings):
    headline = ("q", "critic_loss", "supervised_loss", "entropy")
    trains_on = "recorded data with several objectives, then the task itself if wanted; discrete actions"
    metrics = {
        "q": "mean value of the batch's actions, in deviations of the reward | far beyond what returns can be: drift",
        "critic_loss": "half the squared error of Q, in these units | may grow with the returns",
        "supervised_loss": "-log of the probability of the classes that responses were in, summed over responses | "
        "falls, then settles: the rest is luck",
        "actor_loss": "minus advantage and entropy under the policy | its level means nothing",
        "entropy": "of the actor, in nats | falls slowly; near 0 early: raise `entropy_coefficient`",
        "student_kl": "of the actor from its student, in nats | near 0: the student serves as well",
    }
    default_steps = 200_000
    no_limit = "without anchor, groups and student it is a discrete actor-critic whose values are not soft, which is "
    no_limit += "not in the catalogue"
    presets = {
        "feed": {
            "dataset": "random",
            "random_episodes": 12_000,
            "envs": 500,
            "offline_updates": 2_000,
            "lr": 1e-3,
            "network.sizes": (64, 64),
            "group_sizes": (32,),
        }
    }
    studies = {"feed": Study("feed", 4_000)}
    probes = {"delta": {"lr": 0.1}, "max_grad_norm": {"max_grad_norm": 1e-3}, "replay_size": {"replay_size": 190}}
    smoke = Smoke(
        "feed",
        24,
        {
            "dataset": "random",
            "random_episodes": 20,
            "envs": 4,
            "batch_size": 32,
            "network.sizes": (16,),
            "group_sizes": (8,),
            "student.sizes": (8,),
            "tau": 0.1,
            "lr": 1e-3,
            "offline_updates": 12,
            "replay_size": 1_000,
        },
    )
