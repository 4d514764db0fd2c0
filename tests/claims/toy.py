"""A claim in numbers, in a checkout of its own."""

import subprocess

SOURCE = '''
"""A claim in numbers."""
from pathlib import Path

from polopt.claims import Above, Claim, Greater

LOG = Path(__file__).with_suffix(".log")


def good(seed, budget):
    with open(LOG, "a") as file:
        file.write(f"good {seed} {budget['samples']}\\n")
    return {"score": 10.0 + seed, "curve": [1, 2]}


def poor(seed, budget):
    with open(LOG, "a") as file:
        file.write(f"poor {seed} {budget['samples']}\\n")
    return {"score": 1.0 + 2 * seed}


CLAIM = Claim(
    method="toy", statement="good is better than poor", budget={"samples": 100}, seeds=4, minutes=1,
    arms={"good": good, "poor": poor},
    expect=(Greater("score", "good", "poor", by=1), Above("score", "good", 5, control=True)),
)
'''


def git(folder, *command):
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *who, *command], check=True, capture_output=True)


def write(root, source):
    (root / "claims" / "toy.py").write_text(source)
    git(root, "add", "claims/toy.py")
    git(root, "commit", "-q", "--allow-empty", "-m", "claim")


def ran(root):
    path = root / "claims" / "toy.log"
    return path.read_text().splitlines() if path.exists() else []


def path_of(root):
    return root / "claims" / "results" / "toy.jsonl"
