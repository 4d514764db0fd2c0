"""What the numbers of CDSA mean, and its smoke run."""

from polopt.bases.method import Settings, Smoke
from polopt.bases.offline import DISTANCES


class CDSASettings(Settings):
    headline = ("score_loss", "inverse_loss", "model_loss")
    trains_on = "recorded data, box actions"
    metrics = {
        "stage": "`clone` or `models`",
        "imitation_loss": "while it clones: of the data's actions",
        "score_loss": "squared error of the predicted noise, over coordinates and levels | falls, then settles; 1 is "
        "as good as nothing",
        "model_loss": "squared error of the change of the observation and of the reward, standardized | falls",
        "inverse_loss": "squared error of the action between two observations | falls",
        **DISTANCES,
    }
    default_steps = 200_000
    probes = {"cap": {"cap": 1e-3}}
    no_limit = "its base is any policy, which it leaves as it is: with both weights 0 it acts as that one"
    smoke = Smoke(
        "Pendulum-v1",
        12,
        {
            "dataset": "random",
            "random_episodes": 2,
            "batch_size": 32,
            "clone_updates": 4,
            "score_network.sizes": (16,),
            "model_network.sizes": (16,),
            "network.sizes": (16,),
        },
    )
