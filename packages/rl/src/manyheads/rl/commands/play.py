"""``manyheads rl play``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyheads.core.errors import ArgumentError, DataError
from manyheads.lab.cli.command import Outcome

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv
    from matplotlib.figure import Figure

    from manyheads.rl.policies.player import PolicyPlayer

PICTURES = (".png", ".svg", ".pdf")


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
    attention: Path | None = None,
    by_head: bool = False,
    frame_attention: Path | None = None,
) -> Outcome:
    """Play whole episodes with a trained agent and report their returns; draw pictures of the first.

    Args:
        agent: file of a training run (agent.safetensors); the newest below runs/ by default.
        environment: Gymnasium's name, with the options of training if it is the same; that of training by default.
        episodes: number of episodes.
        seed: of environments and drawn actions.
        deterministic: most probable actions, or drawn ones; as in the evaluation of training by default.
        gif: animation to write (.gif).
        fps: pictures a second of the animation.
        attention: picture to write (.png, .svg or .pdf): which earlier steps each step reads from the memory.
        by_head: draw each attention head of each layer instead of their mean.
        frame_attention: picture to write (.png, .svg or .pdf): where a ViT encoder looks in six frames.
    """
    from manyheads.lab.data.files import check_suffix, write_figure
    from manyheads.lab.reporting.tables import table
    from manyheads.lab.training.run import newest
    from manyheads.rl.agent import Agent
    from manyheads.rl.environments.episodes import evaluate
    from manyheads.rl.environments.vector import make
    from manyheads.rl.evaluation.attention import attention_over_memory
    from manyheads.rl.evaluation.plots import memory_attention
    from manyheads.rl.evaluation.recording import record, write_gif
    from manyheads.rl.training.stored import FILE

    check_suffix("--gif", gif, (".gif",))
    check_suffix("--attention", attention, PICTURES)
    check_suffix("--frame-attention", frame_attention, PICTURES)
    if episodes < 1:
        raise ArgumentError(f"episodes: found {episodes}, expected 1 or more")
    if seed < 0:
        raise ArgumentError(f"seed: found {seed}, expected 0 or more")
    chosen = newest(Path("runs"), FILE) if agent is None else agent
    if chosen is None:
        raise DataError(f"runs: found no {FILE}: train an agent (manyheads rl train tmaze10-gtrxl) or name a file")
    if agent is None:
        print(f"agent: {chosen}", file=sys.stderr)
    loaded = Agent.load(chosen)
    task = loaded.about.get("experiment", {}).get("data", {})
    name = task.get("environment") if environment is None else environment
    if name is None:
        raise ArgumentError(f"environment: found none in {chosen}, expected --environment NAME")
    options = dict(task.get("options", {})) if name == task.get("environment") else {}
    most_probable = task.get("deterministic", True) if deterministic is None else deterministic
    how: dict[str, Any] = {"seed": seed, "deterministic": most_probable}
    environments = make(name, min(16, episodes), **options)
    read = None
    try:
        loaded.check_spaces(environments, f"--environment {name}")
        # the pictures come first: they may be refused, and episodes may take minutes
        if gif is not None or attention is not None or frame_attention is not None:
            # Atari shows the frames that the agent sees
            own = {"render_mode": "rgb_array"} if name.startswith("manyheads/") else {}
            one = make(name, 1, **options, **own)
            try:
                if gif is not None:
                    write_gif(gif, record(loaded.player, one, **how).frames, fps=fps)
                if attention is not None:
                    read = attention_over_memory(loaded.player, one, **how)
                    title = f"What the agent reads from its memory: {loaded.model.core} in {name}"
                    write_figure(attention, memory_attention(read, title=title, by_head=by_head))
                if frame_attention is not None:
                    write_figure(frame_attention, _frames(loaded.player, one, **how))
            finally:
                one.close()
        found = evaluate(loaded.player, environments, episodes, **how)
    finally:
        environments.close()
    # one episode has no standard deviation
    sd = None if episodes == 1 else found.sd
    document = {
        "agent": str(chosen),
        "environment": name,
        "episodes": episodes,
        "mean_return": found.mean,
        "sd": sd,
        "returns": found.returns.tolist(),
        "lengths": found.lengths.tolist(),
        "gif": None if gif is None else str(gif),
        "attention": None if read is None else {"picture": str(attention), "last_step_reads": read.most_read()},
        "frame_attention": None if frame_attention is None else str(frame_attention),
    }
    rows = [
        (name, episodes, f"{found.mean:.3f}" + ("" if sd is None else f" ± {sd:.3f}"), f"{found.lengths.mean():.1f}")
    ]
    return Outcome(document, table(("environment", "episodes", "return", "mean length"), rows))


def _frames(player: PolicyPlayer, env: VectorEnv, **how: Any) -> Figure:
    """Draw six frames spread over an episode, with what the encoder reads in them."""
    from manyheads.rl.evaluation.attention import attention_over_frames, watch_episode
    from manyheads.rl.evaluation.plots import frame_attention

    observations = watch_episode(player, env, **how).observations
    steps = len(next(iter(observations.values())))
    at = sorted({round(one * (steps - 1) / 5) for one in range(6)})
    found = attention_over_frames(player.policy, {name: one[at] for name, one in observations.items()})
    return frame_attention(found.frames, found.weights.mean(1), at, covered=found.covered)
