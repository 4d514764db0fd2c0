"""Presets, limit case, smoke run and meanings of the numbers of LIFT.

The defaults are those of the released code for tasks that it does not name; `t1-real`, `t1-rough` and `t1-flat` have
its settings of pretraining for the humanoids T1 and G1, whose worlds are not here: give yours as `--task module:class`,
with its `mechanics`, and as `--steps` more than the preset pretrains for. That is for `t1-real` the 40 million steps of
the authors' command. For the others they name no number but the bound of all their tasks, 5 billion, which nobody has
to reach: they released a policy of T1 on rough ground after 110 million. `pendulum` is polopt's, of the claim.
"""

from typing import Any

from polopt.bases.method import Limit, Settings, Smoke, Study

SMALL: dict[str, Any] = {
    "simulators": 2,
    "pretrain.batch_size": 32,
    "pretrain.warmup": 64,
    "pretrain.updates_per_step": 2,
    "pretrain.network.sizes": (16, 16),
    "pretrain.critic_network.sizes": (16, 16),
    "pretrain.replay_size": 1_000,
    "model.network.sizes": (16, 16),
    "model.weight_decay": (1e-4,),
    "model.batch_size": 16,
    "model.epochs": 2,
}


ROBOT: dict[str, Any] = {
    "pretrain_steps": 5_000_000_000,
    "simulators": 4_096,
    "pretrain.truncated": "skip",
    "pretrain.discount": 0.982,
}

AS_SAC: dict[str, Any] = {
    "pretrain.order": "sac",
    "pretrain.density": "policy",
    "pretrain.normalize_obs": False,
    "pretrain.weight_decay": 0.0,
    "pretrain.network.sizes": (16, 16),
    "pretrain.critic_network.sizes": (16, 16),
    "pretrain.network.activation": "relu",
    "pretrain.critic_network.activation": "relu",
    "pretrain.policy.log_std_low": -20.0,
}
"""What both stages have as SAC has it, small."""

CONSTANTS: dict[str, Any] = {
    "discount": 0.99,
    "tau": 0.005,
    "lr": 3e-4,
    "critic_lr": 3e-4,
    "entropy_share": 1.0,
    "entropy.initial": 1.0,
    "entropy.lr": 3e-4,
}
"""And constants of a stage."""

NO_MODEL: dict[str, Any] = {"pretrain_steps": 0, "finetune.horizon": (0, 0, 1), "finetune.acts": "sample"}


class LIFTSettings(Settings):
    headline = ("entropy", "entropy_temperature", "q", "model_error", "imagined_reward")
    trains_on = "worlds with known mechanics, such as `pendulum`; box actions"
    metrics = {
        "stage": "pretrain, in the simulators, or fine-tune, in the target; the other numbers are of it",
        "critic_loss": "half the squared error, a mean over critics | may grow with the returns",
        "entropy": "-log pi of fresh samples, in nats, in units of the task | settles at minus `entropy_share` times "
        "the number of action coordinates",
        "model_loss": "of the model of forces: squared error over variance, and the log variance | falls below 0",
        "model_error": "squared error of the model over `model_horizon` decisions, in units of the largest values, on "
        "held-out decisions | falls",
        "imagined_reward": "mean reward of the decisions that were imagined last | grows; far above that of the "
        "target: the model is exploited",
        "horizon": "decisions that are imagined from each start",
    }
    default_steps = 5_300_000
    presets = {
        "t1-real": ROBOT
        | {
            "pretrain_steps": 40_000_000,
            "pretrain.tau": 0.0178,
            "pretrain.lr": 1.32e-4,
            "pretrain.critic_lr": 2.13e-4,
            "pretrain.batch_size": 4_096,
            "pretrain.updates_per_step": 17,
            "pretrain.reward_scale": 3.0,
            "pretrain.entropy_share": 0.896,
            "pretrain.entropy.initial": 3.01e-4,
            "pretrain.entropy.lr": 6.57e-4,
        },
        "t1-rough": ROBOT
        | {
            "pretrain.tau": 0.00239,
            "pretrain.lr": 1.70e-4,
            "pretrain.critic_lr": 1.88e-4,
            "pretrain.batch_size": 16_384,
            "pretrain.updates_per_step": 19,
            "pretrain.reward_scale": 16.0,
            "pretrain.entropy_share": 0.396,
            "pretrain.entropy.initial": 0.0495,
            "pretrain.entropy.lr": 6.44e-4,
        },
        "t1-flat": ROBOT
        | {
            "pretrain.tau": 0.00665,
            "pretrain.lr": 2.05e-4,
            "pretrain.critic_lr": 1.37e-4,
            "pretrain.batch_size": 16_384,
            "pretrain.updates_per_step": 16,
            "pretrain.reward_scale": 32.0,
            "pretrain.entropy_share": 0.174,
            "pretrain.entropy.initial": 2.36e-3,
            "pretrain.entropy.lr": 6.41e-4,
        },
        "pendulum": {
            "simulators": 64,
            "pretrain_steps": 100_000,
            "pretrain.warmup": 1_024,
            "pretrain.updates_per_step": 4,
            "pretrain.batch_size": 256,
            "pretrain.tau": 0.01,
            "pretrain.lr": 1e-3,
            "pretrain.critic_lr": 1e-3,
            "pretrain.network.sizes": (64, 64),
            "pretrain.critic_network.sizes": (128, 128),
            "model.network.sizes": (64, 64),
            "model.weight_decay": (5e-5,),
            "finetune.warmup": 200,
            "finetune.epoch_steps": 200,
            "finetune.tau": 0.01,
            "finetune.lr": 3e-4,
            "finetune.critic_lr": 1e-3,
            "finetune.horizon": (1, 10, 5),
            "finetune.rounds": (10, 40, 4),
            "finetune.round_updates": 10,
        },
    }
    studies = {"pendulum": Study("pendulum", 104_000)}
    limits = (
        Limit(
            "sac",
            task="pendulum",
            learner="learner",
            at=SMALL | AS_SAC | {f"pretrain.{name}": value for name, value in CONSTANTS.items()} | {"simulators": 1},
            apart={"pretrain.order": "release"},
            collects="method",
            because="in one simulator, in the order of SAC, with densities in its units the first stage is SAC",
        ),
        Limit(
            "sac",
            task="pendulum",
            learner="learner",
            at=AS_SAC
            | {f"finetune.{name}": value for name, value in CONSTANTS.items()}
            | NO_MODEL
            | {"finetune.warmup": 64, "finetune.batch_size": 32},
            apart={"pretrain.order": "release"},
            collects="method",
            because="where nothing is imagined and the policy draws in the target, the last stage is SAC likewise",
        ),
    )
    probes = {"model.patience": {"model.epochs": 12, "model.lr": 0.03}}
    smoke = Smoke(
        "pendulum",
        280,
        SMALL
        | {
            "pretrain_steps": 120,
            "finetune.warmup": 40,
            "finetune.epoch_steps": 40,
            "finetune.batch_size": 32,
            "finetune.replay_size": 200,
            "finetune.horizon": (1, 2, 1),
            "finetune.rounds": (2, 3, 1),
            "finetune.starts": 16,
            "finetune.round_updates": 2,
            "finetune.real_share": 0.5,
            "finetune.model_horizon": 2,
            "simulator": (-1.0, 0.0),
        },
        {"horizon": 20},
    )

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        sac = config.pretrain
        each = sac.updates_per_step / config.simulators / sac.steps_per_update
        updates = max(int((min(steps, config.pretrain_steps) - sac.warmup) * each), 0)
        epochs = max(steps - config.pretrain_steps - config.finetune.warmup, 0) // config.finetune.epoch_steps
        return {
            "transitions per update": sac.batch_size,
            "updates in simulators": updates,
            "epochs in the target": epochs,
        }
