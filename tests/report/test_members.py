"""Names, seeds and settings of a comparison, before anything is planned."""

import pytest

from polopt.cli.arguments import split_members
from polopt.core.errors import UsageError
from polopt.report.members import Member, members, seeds_of, settings_of


def test_methods_and_names():
    assert members(["sac", "fast=sac"]) == [Member("sac", "sac"), Member("fast", "sac")]
    for specs, said in (
        ([], "one method or more"),
        ("sac", "a list"),
        (["sac", "sac"], "sac is given twice: settings of one method need names, as in fast=sac"),
        (["a-b=sac", "a_b=ppo"], "a_b is given twice"),
        (["sacc"], "there is no method 'sacc'; did you mean 'sac'?"),
        (["fast=sacc"], "did you mean 'sac'?"),
        (["ppo=sac"], "ppo is a method itself"),
        (["../x=sac"], "letters, digits"),
        (["=sac"], "letters, digits"),
        (["fast="], "there is no method ''"),
    ):
        with pytest.raises(UsageError) as error:
            members(specs)
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("given", "seeds"),
    [(3, [0, 1, 2]), ("3", [0, 1, 2]), ("0,1,7", [0, 1, 7]), ("7,", [7]), ([4, 2], [4, 2]), ((5,), [5])],
)
def test_seeds(given, seeds):
    assert seeds_of(given) == seeds


@pytest.mark.parametrize("given", [0, "0", -1, [], "", "a", "1,,2", "1,b", "1;2", [-1], "0,-1", None])
def test_what_are_no_seeds(given):
    with pytest.raises(UsageError, match="--seeds"):
        seeds_of(given)


def test_a_seed_twice_is_refused():
    with pytest.raises(UsageError, match="--seeds 0,7,7: seed 7 is given twice"):
        seeds_of("0,7,7")


def test_own_settings_take_the_place_of_those_for_all():
    among = members(["ppo", "fast=sac", "slow=sac"])
    each = {"fast": {"lr": 3.0, "network.sizes": (1,)}, "sac": {"lr": 2.0, "tau": 0.1}, "ppo": {"window": 7}}
    common = {"lr": 1.0, "network.sizes": (9,), "task_options": {"a": 1}}
    found = {member.name: dict(settings_of(member, among, common, each)) for member in among}
    rest = {"network.sizes": (9,), "task_options": {"a": 1}}
    assert found["ppo"] == {"lr": 1.0, "window": 7} | rest
    assert found["slow"] == {"lr": 2.0, "tau": 0.1} | rest
    assert found["fast"] == {"lr": 3.0, "tau": 0.1} | rest | {"network.sizes": (1,)}
    sac = members(["sac", "other=sac"])  # "sac" is the name of one of them
    assert "lr" not in settings_of(sac[1], sac, {}, {"sac": {"lr": 2.0}})


def test_words_of_the_command_line_are_sorted_by_name():
    argv = "--lr 1 --sac.lr 2 --sac.policy.log-std-low -5 --window=8 --bc-ppo.bc.lr=3 --until return>=0.5 --x.y 1"
    common, each = split_members(argv.split(), ["sac", "bc-ppo"])
    assert common == ["--lr", "1", "--window=8", "--until", "return>=0.5", "--x.y", "1"]
    assert each == {"sac": ["--lr", "2", "--policy.log-std-low", "-5"], "bc-ppo": ["--bc.lr=3"]}
    assert split_members(["--bc_ppo.lr", "1"], ["bc-ppo"])[1] == {"bc-ppo": ["--lr", "1"]}


def test_own_words_take_the_place_of_those_for_all():
    among = members(["sac", "ppo"])
    common = {"argv": ["--lr", "1", "--network.sizes", "8", "8", "--normalize-obs", "--gamma=3"]}
    each = {"sac": {"argv": ["--network.sizes", "4", "--no-normalize-obs", "--gamma", "2"]}}
    sac, ppo = (settings_of(member, among, common, each)["argv"] for member in among)
    assert sac == ["--lr", "1", "--network.sizes", "4", "--no-normalize-obs", "--gamma", "2"]
    assert ppo == common["argv"]


def test_init_is_a_setting_of_its_own():
    among = members(["sac", "tuned=sac"])
    each = {"tuned": {"argv": ["--init", "runs/a", "--lr", "1"]}}
    assert settings_of(among[1], among, {}, each) == {"argv": ["--lr", "1"], "init": "runs/a"}
    assert settings_of(among[0], among, {"argv": ["--init=b"]}, {}) == {"argv": [], "init": "b"}
    for words in (["--init"], ["--init", "a", "b"], ["--init=a", "--init=b"]):
        with pytest.raises(UsageError, match="--init needs one run folder"):
            settings_of(among[0], among, {"argv": words}, {})


@pytest.mark.parametrize(
    ("common", "each", "said"),
    [
        ({"seed": 3}, {}, "takes no --seed"),
        ({"argv": ["--seed", "3"]}, {}, "takes no --seed"),
        ({}, {"sac": {"argv": ["--seed=3"]}}, "takes no --seed"),
        ({}, {"sac": {"name": "x"}}, "NAME=METHOD"),
        ({}, {"sac": {"task_options": {}}}, "one task"),
        ({}, {"sca": {"lr": 1}}, "nobody in this comparison is called 'sca'; did you mean 'sac'?"),
    ],
)
def test_what_a_comparison_sets_itself(common, each, said):
    among = members(["sac", "ppo"])
    with pytest.raises(UsageError) as error:
        settings_of(among[0], among, common, each)
    assert said in str(error.value)
