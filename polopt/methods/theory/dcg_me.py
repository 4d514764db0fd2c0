"""MAP-Elites with descriptor-conditioned gradients.

Faldor et al., "MAP-Elites with Descriptor-Conditioned Gradients and Archive Distillation into a Single Policy", GECCO
2023, arXiv 2303.03832; official code adaptive-intelligent-robotics/DCG-MAP-Elites, its GECCO version.

Keeps the best policy of every kind of behavior, where the kind is a descriptor d of a whole episode (the place where it
ends, say): an archive of cells (`polopt.evaluation.elites`). Half of the offspring are random variations of what is
there, half ascend a critic. A critic of the return alone would drag all of them to one behavior; this one is told a
descriptor d', and is worth less the farther an episode was from it.

    similarity  S(d, d') = exp(-|d - d'| / length_scale)           descriptors scaled to [-1, 1]
    reward      S(d, d') (reward + reward_offset), computed when it is drawn from the replay
    target      y = that + discount (1 - terminated) min_i Q_targ_i(s', a' | d'),  a' = clip(pi_targ(s' | d') + noise)
    critics     sum_i E[ (1 - truncated) (Q_i(s, a | d') - y)^2 ]
    actor       -E[ Q_1(s, pi(s | d') | d') ], before the step of the critics, in every `delay`-th of them
    gradient    a parent theta of the archive with descriptor d takes `gradient_steps` steps of an Adam of its own on
                E_s[ Q_1(s, pi_theta(s) | d) ]
    iso+line    theta_1 + iso N(0, I) + line N(0, 1) (theta_2 - theta_1)

An iteration: offspring of `envs` parents play an episode each and are offered to the archive; the actor is told
descriptors of the archive and plays `actor_episodes`; both go to the replay, offspring with d' = d and the actor's with
what it was told, the only ones with S < 1; then `critic_steps` steps. The actor is the policy of a run:
`polopt.load(run).given([x, y])` is the one for the descriptor (x, y).

Differs from TD3 in: the archive and its offspring; critic and actor read a descriptor; rewards are scaled by S; targets
of the critics move with every step.

Departs from the paper in: nothing that is known but the initial weights and biases (uniform in 1 / sqrt(inputs)).
"""

from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from polopt.config import param
from polopt.core.batch import Batch, average, sides_of
from polopt.core.errors import UsageError
from polopt.core.functional import flatten
from polopt.core.random import paired
from polopt.data.episodes import Episodes
from polopt.evaluation.elites import Elites, centroids, iso_line
from polopt.evaluation.figures import Figure, Heatmap
from polopt.methods.theory.dcg_me_learner import DescriptorTD3
from polopt.methods.theory.dcg_me_settings import DCGMESettings
from polopt.policies import Deterministic
from polopt.policies.conditioned import Conditioned
from polopt.policies.population import Chosen, Population
from polopt.tasks.base import Task


def descriptor_of(batch: Batch, kind: str, coordinates: tuple[int, ...]) -> Tensor:
    """The descriptors [R, D] of whole episodes [R, T]: these coordinates of the observation that the last decision led
    to ("final"), or their mean over all that decisions led to ("mean")."""
    mask, places = batch["mask"], batch["final_obs"][..., list(coordinates)]
    if kind == "final":
        return places[torch.arange(len(mask)), mask.sum(1) - 1]
    return (places * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def marked(batch: Batch, descriptor: Tensor, target: Tensor) -> Batch:
    """What the replay stores of whole episodes [R, T], with their descriptors and what was asked for, both [R, D]."""
    kept = batch.select("obs", "action", "reward", "terminated", "truncated", "final_obs", "mask")
    for name, value in (("descriptor", descriptor), ("told", target)):
        kept[name] = value.unsqueeze(1).expand(*batch.shape, -1)
    return kept


def share(taken: Tensor, among: Tensor) -> Tensor:
    """The share of those in `among` that were taken; 0 where there are none."""
    return (taken & among).sum() / among.sum().clamp_min(1)


class DCGME(DCGMESettings, DescriptorTD3):
    @dataclass(frozen=True)
    class Config(DescriptorTD3.Config):
        envs: int = param(256, "official code", low=2, help="offspring of an iteration, each plays an episode")
        cells: int = param(1024, "official code", low=1, help="of the archive")
        cvt_samples: int = param(50_000, "official code", low=1, help="points of which the cells are made")
        descriptor: str = param("final", "section 5.1", choices=("final", "mean"), help="of what an episode leads to")
        coordinates: tuple[int, ...] = param((0, 1), "assumed", low=0, help="of the observation, which are descriptors")
        low: tuple[float, ...] = param((), "assumed", help="bounds of descriptors; (): those of the observation space")
        high: tuple[float, ...] = param((), "assumed", help="likewise")
        iso: float = param(0.005, "official code", low=0, help="deviation of a variation, in each weight by itself")
        line: float = param(0.05, "official code", low=0, help="deviation of a variation towards another parent")
        actor_episodes: int = param(64, "official code", low=0, help="episodes of the actor in an iteration")

    slug = "dcg-me"
    score = "qd_score"
    learns = "actor"

    def build(self, task: Task) -> None:
        config = self.config
        low, high = self.bounds()
        self.middle, self.half = (high + low) / 2, (high - low) / 2
        size = len(low)
        self.build_learner(size, self.middle, self.half)
        self.population = Population(self.beginner())
        cells = centroids(config.cells, [-1.0] * size, [1.0] * size, samples=config.cvt_samples)
        self.archive = Elites(cells, flatten(self.population.parameters()).numel())
        self.policy = self.actor if config.conditioned else Chosen(self.beginner(), self.elite)
        self.offspring = Episodes(task, config.envs, greedy=True, ledger=self.ledger)
        self.trials = None
        if config.actor_episodes:
            rows = task.twin(config.actor_episodes)
            self.trials = Episodes(rows, config.actor_episodes, greedy=True, ledger=self.ledger)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The least and the largest descriptor [D]. Raises UsageError where the task or the options give none."""
        config, space = self.config, self.spec.obs
        if not isinstance(space, spaces.Box) or len(space.shape) != 1:
            raise UsageError(f"{self.slug} needs observations that are vectors, and {self.spec.name} has {space}")
        if max(config.coordinates) >= space.shape[0]:
            raise UsageError(
                f"coordinates {config.coordinates} are not all among the {space.shape[0]} of an observation"
            )
        found = []
        for name, given in (("low", config.low), ("high", config.high)):
            values = given or tuple(getattr(space, name)[list(config.coordinates)].tolist())
            if len(values) != len(config.coordinates):
                raise UsageError(f"{name} has {len(values)} numbers for {len(config.coordinates)} coordinates")
            found.append(torch.tensor(values))
        low, high = found
        if not (low.isfinite() & high.isfinite() & (low < high)).all():
            raise UsageError(f"descriptors need finite bounds: give low and high, which {self.spec.name} does not have")
        return low, high

    def beginner(self) -> Any:
        """A policy that has learned nothing yet, in no optimizer."""
        return Deterministic().build(self.spec, network=self.config.network).requires_grad_(False)

    def elite(self, descriptor: Tensor) -> Tensor:
        """The genotype [G] in the archive whose descriptor is nearest to this one [D], in its own units."""
        if not len(self.archive.filled):
            raise UsageError("the archive is empty, so no policy can be chosen from it")
        away = (self.archive.descriptor - self.scaled(descriptor)).norm(dim=-1)
        return self.archive.genotype[away.where(self.archive.fitness > -torch.inf, torch.inf).argmin()]

    def scaled(self, descriptor: Tensor) -> Tensor:
        """In [-1, 1], as the archive and all that learns have it."""
        return (descriptor - self.middle.to(descriptor)) / self.half.to(descriptor)

    def raw(self, descriptor: Tensor) -> Tensor:
        """Scaled ones in their own units again."""
        return descriptor * self.half.to(descriptor) + self.middle.to(descriptor)

    def emit(self) -> tuple[Tensor, int]:
        """Offspring [envs, G], of which the first so many are by gradients: none at first, when all are fresh."""
        config = self.config
        if not len(self.archive.filled):
            fresh = [flatten(self.beginner().parameters()) for _ in range(config.envs)]
            return torch.stack(fresh).to(self.archive.genotype), 0
        count = round(config.gradient_share * config.envs)
        parents = self.archive.draw(count, self.generator)
        climbed = self.climbed(self.population, self.archive.genotype[parents], self.archive.descriptor[parents])
        pairs = self.archive.draw(2 * (config.envs - count), self.generator).chunk(2)
        one, other = (self.archive.genotype[each] for each in pairs)
        return torch.cat([climbed, iso_line(one, other, config.iso, config.line, self.generator)]), count

    def collect(self) -> Batch:
        """Plays the offspring and offers them to the archive; then the actor, told descriptors of the archive."""
        self.population.genotypes, count = self.emit()
        batch = self.offspring.next(self.population)
        descriptor = self.descriptors(batch)
        returns = ((batch["reward"] + self.config.reward_offset) * batch["mask"]).sum(1)
        taken = self.archive.add(self.population.genotypes, returns, descriptor)
        sides = {"offspring": marked(batch, descriptor, descriptor)}
        sides["offspring"]["taken"] = taken.unsqueeze(1).expand(batch.shape)
        sides["offspring"]["climbed"] = (
            (torch.arange(len(taken)) < count).to(taken.device).unsqueeze(1).expand(batch.shape)
        )
        if self.trials is not None:
            target = self.archive.descriptor[self.archive.draw(self.config.actor_episodes, self.generator)]
            batch = self.trials.next(self.actor.given(self.raw(self.context(target))))
            sides["actor"] = marked(batch, self.descriptors(batch), target)
        return TensorDict(sides, batch_size=[])

    def descriptors(self, batch: Batch) -> Tensor:
        """Of whole episodes [R, T]: [R, D], scaled to [-1, 1]."""
        return self.scaled(descriptor_of(batch, self.config.descriptor, self.config.coordinates))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        for side in sides_of(batch).values():
            self.replay.add(side.exclude("taken", "climbed"))
        metrics = {}
        if self.config.gradient_share or self.config.actor_episodes:
            steps = [self.fit() for _ in range(self.config.critic_steps)]
            metrics = average([fitted for fitted, _ in steps])
            improved = [step for _, step in steps if step]
            metrics |= average(improved) if improved else {}
        first = batch["offspring"][:, 0]
        if "actor" in batch.keys():
            away = (batch["actor"]["descriptor"] - batch["actor"]["told"])[:, 0].norm(dim=-1)
            metrics["descriptor_error"] = away.mean() / 2
        return metrics | {
            "qd_score": self.archive.qd_score(),
            "coverage": self.archive.coverage,
            "best": self.archive.fitness.amax(),
            "gradient_accepted": share(first["taken"], first["climbed"]),
            "line_accepted": share(first["taken"], ~first["climbed"]),
        }

    @torch.no_grad()
    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """What is in the archive, and what comes of asking for it: an episode of the actor (without one, of the
        archive's policies) for each of `episodes` descriptors of the archive, evenly from all."""
        archive, config = self.archive, self.config
        known = archive.filled if len(archive.filled) else torch.arange(config.cells)
        chosen = known[torch.linspace(0, len(known) - 1, episodes).round().long()]
        targets = (archive.descriptor if len(archive.filled) else archive.centroids)[chosen]
        own, actor = task.num, Conditioned(self.actor.actor, self.spec, self.middle, self.half)
        returns, errors = [], []
        with paired():
            for start in range(0, episodes, own):
                rows = torch.arange(start, start + own).clamp_max(episodes - 1)
                player: Any = Population(self.population.actor)
                player.genotypes = archive.genotype[chosen[rows]]
                if config.conditioned:
                    player = actor.given(self.raw(targets[rows]))
                batch = Episodes(task, starts=range(start, start + own), greedy=greedy).next(player)
                left = min(own, episodes - start)
                returns.append((batch["reward"] * batch["mask"]).sum(1)[:left])
                errors.append((self.descriptors(batch) - targets[rows]).norm(dim=-1)[:left] / 2)
        return {
            "qd_score": archive.qd_score().item(),
            "coverage": archive.coverage.item(),
            "return": torch.cat(returns).double().mean().item(),
            "descriptor_error": torch.cat(errors).double().mean().item(),
        }

    def figures(self) -> dict[str, Figure]:
        """The archive, where descriptors have two coordinates."""
        if len(self.config.coordinates) != 2:
            return {}
        x, y = (f"coordinate {number}" for number in self.config.coordinates)
        return {"archive": Heatmap(self.archive.picture([-1.0, -1.0], [1.0, 1.0]), x, y)}
