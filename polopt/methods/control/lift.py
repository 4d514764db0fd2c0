"""LIFT: a policy of many simulators goes on in one target, where it explores in a model and not in the world.

Huang et al., "Towards Bridging the Gap between Large-Scale Pretraining and Efficient Finetuning for Humanoid Control",
2026, arXiv 2601.21363; official code bigai-ai/LIFT-humanoid.

Three stages, which share policy, critics and the normalizer of observations:

    pretrain    SAC in `simulators` rows of the simulator for `pretrain_steps`: large batches, many gradient steps
    model       on what was stored of that: known mechanics, unknown forces (polopt/models/structured.py),
                    s' = s after M(q) qdd + C(q, qd) = torque(a) + f(s, a)
    fine-tune   in the target, which is the task. In each epoch
                    fit       the model to all decisions in the target, over `model_horizon` of them in a row
                    play      `epoch_steps` decisions with the MODE of the policy: nothing random is done in the world
                    imagine   `rounds` times: in the model SAMPLED decisions, `horizon` of them from each of `starts`
                              recorded states; then `round_updates` steps of SAC on these, and a share of real ones
                horizon and rounds grow over the first epochs. Critics and policy bring the averages of their optimizers
                along, and not the temperature, which begins anew.

The simulator is a model in the box of the task (`simulator`), so that the target may differ in what nobody knows: mass
and friction, say. The mechanics are those of the simulator; what is different in the target is a force to be learned.

Differs from SAC in: all of that; with `pretrain.order` "sac" the first stage is SAC in many rows, and with `horizon`
(0, 0, 1) the last one is SAC on the target's decisions alone (`acts` "sample": what is usually done).

Departs from the paper in: the true successor of a decision is known at a time limit, so that critics bootstrap there
(`truncated`) and the model learns from the last decision of an episode; a fit of the model resamples its data, and ends
with the weights that were best on held-out decisions; the policy's log deviation is clamped, not squashed; critics read
actions in [-1, 1], not in units of the task; of an observation that is no Dict they see the model's noise as well. The
ramp of the target entropy, histories of observations and the search for constants are not here.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

from polopt.bases.method import learner_param
from polopt.bases.staged import Stage, Staged
from polopt.config import param
from polopt.core.errors import UsageError
from polopt.data.replay_source import ReplaySource
from polopt.methods.control.lift_finetune import FineTune, as_task
from polopt.methods.control.lift_pretrain import ParallelSAC, make_actor, make_critic
from polopt.methods.control.lift_settings import LIFTSettings
from polopt.models.ensemble import Ensemble
from polopt.models.fitting import Fitting
from polopt.models.structured import Structured, windows
from polopt.networks import Network
from polopt.optim import Optimizer
from polopt.policies.base import Density, Reparameterized
from polopt.tasks.base import Task
from polopt.tasks.described import Described
from polopt.tasks.parameters import Parameters
from polopt.tasks.simulated import Simulated

SHARED = ("critics", "policy_critic", "reward_scale", "weight_decay", "order", "truncated", "density", "sees")
"""Settings of the first stage that hold in the last one too."""
OF_PRETRAINING = (
    "network",
    "critic_network",
    "policy",
    "normalize_obs",
    "n_step",
    "steps_per_update",
    "updates_per_step",
)


class LIFT(LIFTSettings, Staged):
    @dataclass(frozen=True)
    class Config(Staged.Config):
        pretrain: ParallelSAC.Config = learner_param(
            ParallelSAC.Config(), "official code", help="SAC in the simulators"
        )
        pretrain_steps: int = param(
            5_000_000, "official code", low=0, unit="env_steps", help="in the simulators; 0: --init brings the policy"
        )
        simulators: int = param(1_000, "official code", low=1, help="rows of the simulator that are stepped together")
        simulator: tuple[float, ...] = param(
            (),
            "polopt",
            low=-1,
            high=1,
            help="the simulator's model, a place in the task's box [-1, 1]^P; (): the task's",
        )
        model: Ensemble = param(
            Ensemble(
                members=1,
                elites=1,
                network=Network((400, 400, 400, 400), "silu"),
                weight_decay=(2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4),
                batch_size=200,
                patience=6,
                epochs=1_000,
            ),
            "official code",
            help="of forces, and how it is fitted to the target",
        )
        dynamics: str = param(
            "forces",
            "official code",
            choices=("forces", "changes"),
            help="changes: a network says how the state changes, and no mechanics are known but the reward",
        )
        pretrain_epochs: int = param(1, "official code", low=0, help="of the model, on what the first stage has stored")
        finetune: FineTune.Config = learner_param(
            FineTune.Config(), "official code", without=SHARED + OF_PRETRAINING, help="SAC in the target and its model"
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.pretrain_steps == 0:
                self.refuse("simulators", "pretrain_epochs", because="without pretraining")
            self.refuse("model.network.head_gain", because="on a model, whose last layer has scale 1")
            if not self.finetune.imagining:
                self.refuse("model", "dynamics", "pretrain_epochs", because="without a model")

    slug = "lift"
    requires = (Reparameterized, Density)
    metrics_of = (ParallelSAC,)

    def build(self, task: Task) -> None:
        config = self.config
        self.policy: Any = make_actor(self.spec, config.pretrain)
        self.check_policy()
        if self.policy.recurrent:
            raise UsageError("lift draws single decisions, which a recurrent policy cannot learn from")
        self.critic = make_critic(self.spec, config.pretrain, self.policy)
        known = self.place()
        self.model = self.make_model(task, known) if config.finetune.imagining else None
        self.model_optimizer = None if self.model is None else Optimizer(self.model, lr=config.model.lr)
        self.simulator = task.twin(config.simulators) if config.pretrain_steps else None
        if known and isinstance(self.simulator, Simulated):
            self.simulator.levels = {name: torch.tensor([value]) for name, value in known.items()}
        super().build(task)

    def place(self) -> dict[str, float]:
        """The parameters of the simulator that the target may have otherwise."""
        if not self.config.simulator:
            return {}
        box, place = Parameters.of(self.spec), self.config.simulator
        if len(place) != len(box.names):
            raise UsageError(
                f"simulator has {len(place)} numbers for the {len(box.names)} parameters of {self.spec.name}"
            )
        return {name: float(value) for name, value in box.values(torch.tensor(place)).items()}

    def make_model(self, task: Task, known: dict[str, float]) -> Structured:
        """Raises UsageError for a task whose mechanics are not known."""
        if "joints" not in self.spec.info or not isinstance(task, Simulated | Described):
            raise UsageError(
                f"lift imagines with known mechanics, and those of {self.spec.name} are not, as those of the task "
                "pendulum are; --finetune.horizon 0,0,1 does without"
            )
        mechanics = task.mechanics(**known) if isinstance(task, Simulated) else None
        return Structured(self.spec, self.config.model, mechanics, known=self.config.dynamics == "forces")

    def stage(self, index: int) -> Stage | None:
        config = self.config
        names = ["fine-tune"] if config.pretrain_steps == 0 else ["pretrain", "fine-tune"]
        parts: dict[str, Any] = {"policy": self.policy, "critic": self.critic}
        if index >= len(names):
            return None
        if names[index] == "pretrain":
            assert self.simulator is not None
            learner = ParallelSAC(self.learner_config(config.pretrain), self.simulator, ledger=self.ledger, parts=parts)
            return Stage("pretrain", learner, until={"env_steps": config.pretrain_steps})
        given = {name: getattr(config.pretrain, name) for name in SHARED}
        finetune = self.learner_config(config.finetune, **given)
        parts |= {"model": self.model, "model_optimizer": self.model_optimizer}
        return Stage("fine-tune", FineTune(finetune, self.task, ledger=self.ledger, parts=parts))

    def finish(self, index: int) -> None:
        """The model learns from what the first stage has stored."""
        config, source = self.config, self.learner.source
        if self.model is not None and config.pretrain_epochs:
            assert isinstance(source, ReplaySource)
            how = replace(config.model, epochs=config.pretrain_epochs)
            data = windows(as_task(source.replay.whole(), self.policy), 1)
            Fitting(self.model, data, config=how, optimizer=self.model_optimizer).run()

    def _enter(self, stage: Stage | None) -> None:
        before = getattr(self, "learner", None)
        super()._enter(stage)
        if isinstance(self.learner, FineTune) and before is not None and not isinstance(before, FineTune):
            self.learner.take_over(before)
