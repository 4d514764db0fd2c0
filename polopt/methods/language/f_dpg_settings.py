"""What f-DPG says of itself besides its mathematics: metrics, presets, its limit case, and its smallest run."""

from polopt.bases.method import Limit, Settings, Smoke

NEARER = {"lr": 1e-3, "divergence": "reverse-kl", "proposal_metric": "reverse-kl"}  # the policy comes nearer to p


class FDPGSettings(Settings):
    headline = ("reward", "accuracy", "jensen_shannon", "kl_start", "log_z")
    metrics = {
        "pseudo_reward": "mean of R | towards 0",
        "jensen_shannon": "estimate of KL(pi || m) + KL(p || m) in nats, m half-way: twice the usual one | falls",
        "forward_kl": "estimate of KL(p || pi) in nats, from samples that may miss what p likes | falls",
        "reverse_kl": "estimate of KL(pi || p) in nats | falls",
        "total_variation": "estimate of TV(pi, p), from 0 to 1 | falls",
        "kl_start": "estimate of KL(pi || a) in nats: how far the policy has gone from the model at the start",
        "log_z": "mean log Z of the prompts | settles",
        "importance": "mean of pi(x) / q(x) | near 1",
        "target_policy": "estimated divergence of the policy from p, over the latest samples",
        "target_proposal": "estimated divergence of the proposal from p, over the latest samples",
    }
    presets = {
        "paper": {
            "model": "openai-community/gpt2",
            "batch_prompts": 1,
            "divergence": "jensen-shannon",
            "policy.max_tokens": 40,
        },
        "small": {"batch_prompts": 4, "samples_per_prompt": 64, "lr": 1e-3, "policy.max_tokens": 32},
    }
    probes = {
        "baseline_window": {"baseline_window": 0},
        "floor": {"target": "constraint"},
        "proposal": {"proposal": "policy", "proposal_every": 16},
        "proposal_every": NEARER | {"proposal_every": 1},
        "proposal_window": NEARER | {"proposal_every": 1, "proposal_window": 1},
    }
    limits = (
        Limit(
            base="rec",
            at={
                "divergence": "reverse-kl",
                "beta": 1e-9,
                "baseline_window": 0,
                "lr_schedule.warmup": 0.0,
                "max_grad_norm": 1e-3,
            },
            apart={"beta": 1.0},
            base_at={
                "surrogate": "reinforce",
                "restraint": "none",
                "sync_interval": 1,
                "baseline.baseline": "log-avg-exp",
                "baseline.temperature": 1e-9,
                "aggregate": "sum",
                "max_grad_norm": 1e-3,
            },
            because="reverse KL that hardly minds the start is REINFORCE on the reward, with beta log Z, the soft "
            "maximum of a prompt's rewards, as baseline; up to that little, where the gradient has a fixed length",
            tolerance=1e-5,
        ),
    )
    smoke = Smoke(
        "vowels",
        96,
        {
            "model": "tiny",
            "batch_prompts": 4,
            "samples_per_prompt": 4,
            "updates_per_batch": 2,
            "proposal": "adaptive",
            "proposal_every": 2,
            "lr": 1e-2,
            "policy.max_tokens": 4,
        },
        {"pool": 64, "score_truncated": True},
    )
