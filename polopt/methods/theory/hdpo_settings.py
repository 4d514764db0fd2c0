"""What HDPO says of itself."""

from polopt.bases.settings import Settings, Smoke, Study

EPOCH = 32_768 * 50  # env_steps; the released code has 20,000 of them at most
HOUSE_EPOCH = 8192 * 50


class HDPOSettings(Settings):
    score = "-cost"
    default_steps = 50_000_000
    eval_episodes = 1024
    headline = ("cost", "late_cost")
    trains_on = "worlds with known gradients: `inventory/store` and other networks, and your own"
    metrics = {
        "cost": "of a period and store, of all periods of this batch of scenarios | falls",
        "late_cost": "the same after `burn_in` periods, when it no longer matters where a scenario began",
        "eval/cost": "of a period and store after `eval_burn_in` periods, of other scenarios | near late_cost: few "
        "scenarios are learned by heart",
        "eval/cost_rounded": "the same with orders rounded to whole units",
        "eval/return": "minus the cost of all `eval_periods` periods",
    }
    presets = {
        "store": {},
        "serial": {"lr": 0.01, "network.sizes": (32, 32)},
        "warehouse": {"lr": 3e-4, "network.sizes": (512, 512, 512), "scenarios": 8192, "batch_size": 1024},
        "warehouse-graph": {
            "policy": "graph-orders",
            "lr": 1e-3,
            "max_grad_norm": 1.0,
            "network.sizes": (32, 32),
            "scenarios": 8192,
            "batch_size": 1024,
        },
        "serial-graph": {"policy": "graph-orders", "lr": 1e-3, "max_grad_norm": 1.0, "network.sizes": (32, 32)},
    }
    studies = {
        "store": Study("inventory/store", 20_000 * EPOCH, {"lead": 4}),
        "serial": Study("inventory/serial", 20_000 * EPOCH),
        "warehouse": Study("inventory/warehouse", 20_000 * HOUSE_EPOCH, {"stores": 5}),
        "warehouse-graph": Study("inventory/warehouse", 20_000 * HOUSE_EPOCH, {"stores": 5}),
        "serial-graph": Study("inventory/serial", 20_000 * EPOCH),
    }
    no_limit = (
        "no other method learns from the gradient of a simulator; its tests compare with the newsvendor's gradient and "
        "with the optimum of value iteration"
    )
    probes = {
        "max_grad_norm": {"max_grad_norm": 0.01},
        **{f"policy.{name}": {"policy": "graph-orders"} for name in ("size", "rounds", "bias")},
    }
    smoke = Smoke(
        "inventory/warehouse",
        16 * 4 * 8,
        {
            "scenarios": 48,
            "batch_size": 16,
            "periods": 4,
            "burn_in": 2,
            "eval_periods": 6,
            "eval_burn_in": 3,
            "network.sizes": (8,),
        },
        task_options={"stores": 2},
    )
