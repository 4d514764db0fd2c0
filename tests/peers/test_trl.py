"""Gradients of our losses against TRL's own loss code, called on the same float64 tensors: `make test-peers`.

TRL computes its losses inside of trainers. They are called as plain functions here, with a stand-in for the trainer
that holds the settings they read and a model that returns our tensors. The VALUE of a loss is not compared: ours has
the gradient of the published loss, not its value.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_trainer import SFTTrainer

from polopt.losses import Surrogate
from polopt.losses.estimator import token_weights
from polopt.losses.pairwise import pairwise
from polopt.losses.regression import emphasis, imitation
from polopt.losses.surrogate import surrogate_loss
from polopt.regularizers import ReferenceKL
from polopt.regularizers.anchors import cloning, reference_penalty
from polopt.regularizers.divergences import slope
from polopt.values.groups import soft_penalty

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("float64")
LENGTHS = torch.tensor([6, 1, 3, 6, 2, 5, 4, 6])
SPREAD = torch.tensor([0.3, 0.6, 1e-4, 1.0, 2e-4, 1.2, 0.1, 1e-3])[:, None]  # some rows inside of GSPO's narrow range


class Accelerator:
    """One process: nothing to gather."""

    num_processes = 1
    device = torch.device("cpu")
    sync_gradients = True
    parallelism_config = None

    def gather(self, x):
        return x

    gather_for_metrics = gather

    def reduce(self, x, reduction="sum"):
        return x


def stand_in(**settings):
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=1,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        get_tp_size=lambda: 1,
        **settings,
    )


def tokens(seed=0):
    """log_prob (leaf), old_log_prob, reference_log_prob [8, 6], advantage [8], mask; float64."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(6) < LENGTHS[:, None]
    log_prob = -torch.rand(8, 6, generator=generator) * 3 - 0.05
    old = log_prob + SPREAD * torch.randn(8, 6, generator=generator)
    reference = log_prob + 0.5 * torch.randn(8, 6, generator=generator)
    advantage = torch.randn(8, generator=generator)
    return log_prob.requires_grad_(), old, reference, advantage, mask


def grpo_gradient(log_prob, old, reference, advantage, mask, **settings):
    """d loss / d log_prob from GRPOTrainer._compute_loss."""
    defaults = {
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "max_completion_length": 10,
        "_entropy_bonus_enabled": False,
    }
    delta = settings.pop("delta", None)
    trainer = stand_in(**(defaults | settings))
    trainer.args = SimpleNamespace(delta=delta, use_bias_correction_kl=False, steps_per_generation=1)
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (log_prob, torch.zeros(8, 6), None)
    inputs = {
        "prompt_ids": torch.zeros(8, 2, dtype=torch.int64),
        "prompt_mask": torch.ones(8, 2, dtype=torch.int64),
        "completion_ids": torch.zeros(8, 6, dtype=torch.int64),
        "completion_mask": mask.to(torch.int64),
        "advantages": advantage,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    return torch.autograd.grad(GRPOTrainer._compute_loss(trainer, None, inputs), log_prob)[0]


CASES = {
    "grpo": ("grpo", "sequence", {}),
    "bnpo": ("ppo", "token", {"loss_type": "bnpo"}),
    "dr_grpo": ("dr-grpo", "constant", {"loss_type": "dr_grpo"}),
    "dapo": ("dapo", "token", {"loss_type": "dapo", "epsilon_high": 0.28}),
    # TRL's epsilon_high is the bound itself for CISPO, ours is 1 + clip_high.
    "cispo": ("cispo", "token", {"loss_type": "cispo", "epsilon_high": 1.2}),
    "gspo": (
        "gspo",
        "sequence",
        {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
    ),
    "gspo, wide": ("rec-seq-one-side-is", "sequence", {"importance_sampling_level": "sequence"}),
    "delta": ("dual-clip", "sequence", {"delta": 3.0}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_surrogates(case, seed):
    name, kind, settings = CASES[case]
    log_prob, old, reference, advantage, mask = tokens(seed)
    weight = token_weights(mask, kind, length=10)
    loss, metrics = surrogate_loss(Surrogate.named[name], log_prob, old, advantage, weight, mask=mask)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    expected = grpo_gradient(log_prob, old, reference, advantage, mask, **settings)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-12)
    assert expected.abs().max() > 1e-2
    assert metrics["clip_fraction"] > 0


def test_reference_kl():
    log_prob, old, reference, advantage, mask = tokens()
    weight = token_weights(mask, "sequence")
    loss, _ = surrogate_loss(Surrogate.named["grpo"], log_prob, old, advantage, weight)
    penalty, _ = reference_penalty(ReferenceKL(0.04), log_prob, reference, weight)
    (gradient,) = torch.autograd.grad(loss + penalty, log_prob)
    expected = grpo_gradient(log_prob, old, reference, advantage, mask, beta=0.04)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-12)


def dpo_gradient(log_prob, reference, mask, loss_type="sigmoid", beta=0.1, smoothing=0.0, divergence="reverse_kl"):
    """d loss / d log_prob [2B, T] from DPOTrainer._compute_loss; the first half is chosen. Prompts are one token."""
    zeros = torch.zeros_like(log_prob)
    outputs = SimpleNamespace(
        log_probs=log_prob * mask, entropy=zeros, mean_logits=zeros, is_top1=torch.zeros_like(mask), aux_loss=None
    )
    chosen, rejected = (reference * mask).sum(1).chunk(2)
    trainer = stand_in(
        ld_alpha=None,
        precompute_ref_logps=True,
        beta=beta,
        label_smoothing=smoothing,
        f_divergence_type=divergence,
        f_alpha_divergence_coef=0.3,
        loss_types=[loss_type],
        loss_weights=[1.0],
        use_weighting=False,
    )
    whole = torch.cat([torch.zeros(len(mask), 1, dtype=torch.bool), mask], 1).to(torch.int64)
    inputs = {
        "input_ids": torch.zeros_like(whole),
        "attention_mask": torch.ones_like(whole),
        "completion_mask": whole,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **kwargs: outputs, inputs, False)
    return torch.autograd.grad(loss, log_prob)[0]


@pytest.mark.parametrize(
    ("loss_type", "beta", "smoothing"),
    [("sigmoid", 0.1, 0.0), ("sigmoid", 2.0, 0.0), ("robust", 0.5, 0.1), ("ipo", 0.1, 0.0), ("hinge", 0.5, 0.0)],
)
def test_pairs(loss_type, beta, smoothing):
    log_prob, _, reference, _, mask = tokens()
    score = ((log_prob - reference) * mask).sum(1)
    if loss_type == "ipo":  # TRL and the authors: means over tokens
        score = score / mask.sum(1)
    weight = torch.full((4,), 0.25)
    loss = pairwise(*score.chunk(2), beta, weight, kind=loss_type, label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    expected = dpo_gradient(log_prob, reference, mask, loss_type, beta, smoothing)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-12)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize(
    ("divergence", "kind"),
    [("forward_kl", "forward-kl"), ("js_divergence", "jensen-shannon"), ("alpha_divergence", "alpha")],
)
def test_pairs_with_another_divergence(divergence, kind):
    log_prob, _, reference, _, mask = tokens()
    tolerance = {"rtol": 1e-6, "atol": 1e-12}
    if kind == "alpha":  # TRL computes this one in single precision; its alpha is one minus ours
        log_prob, reference = log_prob.detach().float().requires_grad_(), reference.float()
        tolerance = {"rtol": 1e-4, "atol": 1e-6}
    score = slope(((log_prob - reference) * mask).sum(1), kind, 0.7)
    weight = torch.full((4,), 0.25, dtype=log_prob.dtype)
    (gradient,) = torch.autograd.grad(pairwise(*score.chunk(2), 0.1, weight), log_prob)
    expected = dpo_gradient(log_prob, reference, mask, divergence=divergence)
    torch.testing.assert_close(gradient, expected, **tolerance)


def sft_gradient(log_prob, mask, loss_type):
    """d loss / d log_prob from SFTTrainer.compute_loss."""
    outputs = SimpleNamespace(
        log_probs=log_prob * mask, label_mask=mask, entropy=torch.zeros(8, 6), is_top1=torch.zeros_like(mask)
    )
    trainer = stand_in(
        compute_loss_func=None,
        label_smoother=None,
        args=SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=True, max_length=None),
    )
    inputs = {"input_ids": torch.zeros(8, 6), "labels": torch.zeros(8, 6), "attention_mask": torch.ones(8, 6)}
    loss = SFTTrainer.compute_loss(trainer, lambda **kwargs: outputs, inputs)
    return torch.autograd.grad(loss, log_prob)[0]


@pytest.mark.parametrize(("loss_type", "name"), [("nll", "sft"), ("dft", "srft")])
def test_demonstrations(loss_type, name):
    """SFT; and dynamic fine-tuning (arXiv 2508.05629), which has the slots of SRFT's offline term with advantage 1."""
    log_prob, _, _, _, mask = tokens()
    weight = token_weights(mask, "token")
    loss, _ = surrogate_loss(Surrogate.named[name], log_prob, None, torch.ones(8), weight)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    expected = sft_gradient(log_prob, mask, loss_type)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-12)
    if name == "sft":
        (clone,) = torch.autograd.grad(cloning(log_prob, weight), log_prob)
        torch.testing.assert_close(clone, expected, rtol=1e-6, atol=1e-12)


def test_demonstrations_by_their_probability():
    """`sft --emphasis probability`, which `otr` is without a reward of wrong tokens."""
    log_prob, _, _, _, mask = tokens()
    loss = imitation(-log_prob, token_weights(mask, "token"), emphasis(log_prob, "probability"))
    (gradient,) = torch.autograd.grad(loss, log_prob)
    torch.testing.assert_close(gradient, sft_gradient(log_prob, mask, "dft"), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("limit", "buffer"), [(20, 4), (100, 20), (7, 7)])
def test_the_soft_penalty_of_long_completions(limit, buffer):
    lengths = range(1, limit + 1)
    expected = get_soft_overlong_punishment(limit, buffer)([[0] * length for length in lengths])
    found = soft_penalty(torch.tensor(lengths, dtype=torch.float64), limit, buffer)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert min(expected) == -1.0
