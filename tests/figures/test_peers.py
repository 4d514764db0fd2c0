"""How the libraries beside polopt are got, and what their workers do that needs none of them."""

import subprocess

from benchmarks import environments, speed

SCRIPT = """
import gymnasium as gym

def make_env(env_id):
    return lambda: gym.wrappers.RecordEpisodeStatistics(gym.make(env_id))

class args:
    total_timesteps = 10**9

WIDTH, done = 256, []
if __name__ == "__main__":
    envs = gym.vector.SyncVectorEnv([make_env("Pendulum-v1")])
    envs.reset(seed=0)
    for global_step in range(args.total_timesteps):
        done.append(envs.step(envs.action_space.sample()))
"""  # with the places of CleanRL's that are edited


def test_every_side_has_a_worker_and_what_to_install():
    sides = [side for case in speed.CASES for side in case.sides]
    assert {side.library for side in sides} <= {*environments.SCRIPTS}
    for name, script in environments.SCRIPTS.items():
        assert (environments.WORKERS / script).is_file()
        assert name in environments.OWN or (environments.ROOT / "benchmarks" / "peers" / f"{name}.txt").is_file()


def test_a_source_is_fetched_at_its_commit(tmp_path):
    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(["git", "-C", tmp_path / "there", *who, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    (tmp_path / "there").mkdir()
    git("init", "--quiet")
    for text in ("pinned", "later"):
        (tmp_path / "there" / "script.py").write_text(text)
        git("add", "script.py")
        git("commit", "--quiet", "--message", text)
    for commit, text in (("HEAD", "later"), ("HEAD~1", "pinned")):  # the second in place of the first
        environments._fetch("peer", f"file://{tmp_path}/there", git("rev-parse", commit), tmp_path / "source")
        assert (tmp_path / "source" / "script.py").read_text() == text


def test_cleanrl_goes_on_step_by_step_and_sees_how_episodes_end(monkeypatch):
    monkeypatch.syspath_prepend(environments.WORKERS)
    import peer_cleanrl

    names = {"__name__": "__main__", "Vector": peer_cleanrl.Vector}
    exec(peer_cleanrl.edited(SCRIPT, 8), names)
    assert names["WIDTH"] == 8
    steps, done = names["steps"](), names["done"]
    next(steps)
    assert not done
    for number in range(1, 201):
        next(steps)
        assert len(done) == number
    assert not any("final_info" in infos for *_, infos in done[:-1])
    obs, _, terminated, truncated, infos = done[-1]
    assert truncated
    assert not terminated
    assert [info["episode"]["l"] for info in infos["final_info"]] == [200]
    assert abs(infos["final_observation"][0] - obs[0]).max() > 0  # what is returned is of the next episode
