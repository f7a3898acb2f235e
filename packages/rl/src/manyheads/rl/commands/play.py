"""``manyheads rl play``."""

from __future__ import annotations

import sys
from pathlib import Path

from manyheads.core.errors import ArgumentError, DataError
from manyheads.lab.cli.command import Outcome


def play(
    agent: Path | None = None,
    /,
    *,
    environment: str | None = None,
    episodes: int = 20,
    seed: int = 1,
    deterministic: bool | None = None,
    gif: Path | None = None,
    fps: float = 15.0,
) -> Outcome:
    """Play whole episodes with a trained agent and report their returns; make an animation of the first.

    Args:
        agent: file of a training run (agent.safetensors); the newest below runs/ by default.
        environment: Gymnasium's name, with the options of training if it is the same; that of training by default.
        episodes: number of episodes.
        seed: of environments and drawn actions.
        deterministic: most probable actions, or drawn ones; as in the evaluation of training by default.
        gif: animation to write (.gif).
        fps: pictures a second of the animation.
    """
    from manyheads.lab.data.files import check_suffix
    from manyheads.lab.reporting.tables import table
    from manyheads.lab.training.run import newest
    from manyheads.rl.agent import Agent
    from manyheads.rl.environments.episodes import evaluate
    from manyheads.rl.environments.vector import make
    from manyheads.rl.evaluation.recording import record, write_gif
    from manyheads.rl.training.stored import FILE, load_policy

    check_suffix("--gif", gif, (".gif",))
    if episodes < 1:
        raise ArgumentError(f"episodes: found {episodes}, expected 1 or more")
    chosen = newest(Path("runs"), FILE) if agent is None else agent
    if chosen is None:
        raise DataError(f"runs: found no {FILE}: train an agent (manyheads rl train tmaze10-gtrxl) or name a file")
    if agent is None:
        print(f"agent: {chosen}", file=sys.stderr)
    *_, about = load_policy(chosen)
    task = about.get("experiment", {}).get("data", {})
    name = task.get("environment") if environment is None else environment
    if name is None:
        raise ArgumentError(f"environment: found none in {chosen}, expected --environment NAME")
    options = dict(task.get("options", {})) if name == task.get("environment") else {}
    most_probable = task.get("deterministic", True) if deterministic is None else deterministic
    player = Agent.load(chosen).player
    environments = make(name, min(16, episodes), **options)
    try:
        found = evaluate(player, environments, episodes, seed=seed, deterministic=most_probable)
    finally:
        environments.close()
    if gif is not None:
        # Atari shows the frames that the agent sees
        own = {"render_mode": "rgb_array"} if name.startswith("manyheads/") else {}
        one = make(name, 1, **options, **own)
        try:
            write_gif(gif, record(player, one, seed=seed, deterministic=most_probable).frames, fps=fps)
        finally:
            one.close()
    document = {
        "agent": str(chosen),
        "environment": name,
        "episodes": episodes,
        "mean_return": found.mean,
        "sd": found.sd,
        "returns": found.returns.tolist(),
        "lengths": found.lengths.tolist(),
        "gif": None if gif is None else str(gif),
    }
    rows = [(name, episodes, f"{found.mean:.3f} ± {found.sd:.3f}", f"{found.lengths.mean():.1f}")]
    return Outcome(document, table(("environment", "episodes", "return", "mean length"), rows))
