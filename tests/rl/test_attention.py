"""What agents attend to: weights over the memory against an oracle, attention over frames, pictures and the command."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image

from manyheads.core.errors import ArgumentError
from manyheads.lab.cli.main import main
from manyheads.lab.data.files import write_figure
from manyheads.rl import Agent
from manyheads.rl.environments.vector import make
from manyheads.rl.evaluation.attention import (
    MemoryAttention,
    attention_over_frames,
    attention_over_memory,
    cores_with_attention,
    memory_weights,
    watch_episode,
)
from manyheads.rl.evaluation.plots import frame_attention, memory_attention
from manyheads.rl.training.settings import AgentModel

SEEN, ACTED = spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Discrete(2)
ROUTING = {"shared_qk": True, "assignment": "latest-w", "block": 2, "clusters": 2}
# settings, and how many steps before it a step may read; routing looks back by cluster, not by time
CORES = {
    "gtrxl": ({"memory": 3}, 3),
    "transformer-xl": ({"memory": 3}, 3),
    "softmax": ({"memory": 4}, 3),
    "lama": ({"memory": 4}, 3),
    "routing": ({"memory": 4, "options": ROUTING}, 9),
}
STEPS = 9


def _policy(core, **settings):
    model = AgentModel(core, width=8, depth=2, heads=2, previous_reward=True, **settings)
    return model.seeded(SEEN, ACTED, 1).double()


def _segment(batch=2):
    generator = torch.Generator().manual_seed(0)
    is_first = torch.zeros(batch, STEPS, dtype=torch.bool)
    # one row begins with an episode, the other is in the middle of one with an empty memory; both have resets inside
    is_first[0, [0, 5]] = True
    is_first[1, [2, 3]] = True
    return (
        {"observation": torch.randn(batch, STEPS, 3, generator=generator, dtype=torch.float64)},
        is_first,
        torch.randint(2, (batch, STEPS), generator=generator),
        torch.randn(batch, STEPS, generator=generator, dtype=torch.float64),
    )


def _visible(is_first, memory):
    """``(B, T, T)``: whether step t may read step s, in loops."""
    batch, steps = is_first.shape
    found = np.zeros((batch, steps, steps), bool)
    for b in range(batch):
        for t in range(steps):
            for s in range(t, max(t - memory, 0) - 1, -1):
                found[b, t, s] = True
                if is_first[b, s]:
                    break
    return found


def _step_by_step(policy, observations, is_first, previous_action, previous_reward):
    """The softmax over the used slots of the memory and the step itself, from the projections, as an agent streams.

    The newest slot at step t holds step t - 1, the one before it t - 2, and so on.
    """
    batch, steps = is_first.shape
    blocks = policy.core.blocks
    heads, width = blocks[0].config["heads"], blocks[0].attention.inner.head_width
    weights = np.zeros((batch, len(blocks), heads, steps, steps))
    state = policy.init_state(batch)
    inputs = {}
    hooks = [
        block.register_forward_pre_hook(lambda _, given, level=level: inputs.update({level: given[0]}))
        for level, block in enumerate(blocks)
    ]
    for t in range(steps):
        now = slice(t, t + 1)
        seen = {name: one[:, now] for name, one in observations.items()}
        after = policy(seen, state, is_first[:, now], previous_action[:, now], previous_reward[:, now]).state
        for level, block in enumerate(blocks):
            layer = block.attention.inner
            query, key, distance = (
                part.weight.unflatten(0, (heads, width)) for part in (layer.query, layer.key, layer.distance)
            )
            for b in range(batch):
                used = 0 if is_first[b, t] else int(state[level].used[b])
                own = layer.norm(inputs[level][b, 0])
                for h in range(heads):
                    q, scores = query[h] @ own, []
                    for age in range(used + 1):
                        z = own if age == 0 else layer.norm(state[level].inputs[b, -age])
                        angles = [age / 10000 ** (2 * i / layer.dim) for i in range(layer.dim // 2)]
                        table = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
                        r = distance[h] @ torch.tensor(table, dtype=torch.float64)
                        content = (q + layer.content_bias[h]) @ (key[h] @ z)
                        place = (q + layer.distance_bias[h]) @ r
                        scores.append(float((content + place) / math.sqrt(width)))
                    total = sum(math.exp(one) for one in scores)
                    for age, score in enumerate(scores):
                        weights[b, level, h, t, t - age] = math.exp(score) / total
        state = after
    for hook in hooks:
        hook.remove()
    return weights


@torch.no_grad()
@pytest.mark.parametrize("gate", ["gru", "residual"])
def test_weights_are_the_softmax_over_the_memory_of_an_agent_that_streams(gate):
    policy = _policy("gtrxl", memory=3, gate=gate)
    for layer in (block.attention.inner for block in policy.core.blocks):
        torch.nn.init.normal_(layer.content_bias)
        torch.nn.init.normal_(layer.distance_bias)
    segment = _segment()
    found = memory_weights(policy, *segment)
    assert found.shape == (2, 2, 2, STEPS, STEPS)
    np.testing.assert_allclose(found.numpy(), _step_by_step(policy, *segment), rtol=0, atol=1e-12)


@pytest.mark.parametrize("core", CORES)
def test_rows_sum_to_one_and_other_episodes_and_dropped_steps_get_nothing(core):
    settings, memory = CORES[core]
    policy, segment = _policy(core, **settings), _segment()
    found = memory_weights(policy, *segment).numpy()
    np.testing.assert_allclose(found.sum(-1), 1.0, rtol=0, atol=1e-12)
    hidden = ~_visible(segment[1], memory)
    assert hidden.any()
    assert (found[np.broadcast_to(hidden[:, None, None], found.shape)] == 0).all()
    assert (found >= 0).all()


@pytest.mark.parametrize("core", ["none", "lstm", "gru", "lmu"])
def test_cores_without_attention_are_refused_and_those_with_it_named(core):
    heads = {"heads": None}
    policy = AgentModel(core, width=8, depth=1, previous_reward=True, **heads).seeded(SEEN, ACTED, 1).double()
    with pytest.raises(ArgumentError, match=r"found a core without attention, expected one of .*gtrxl.*transformer-xl"):
        memory_weights(policy, *_segment())


def test_the_cores_with_attention_are_those_that_the_tests_know():
    assert set(cores_with_attention()) == set(CORES)


@pytest.mark.parametrize("deterministic", [True, False])
def test_an_episode_is_seen_again_as_the_agent_saw_it(deterministic):
    agent = Agent("gtrxl", "manyheads/RepeatPrevious-v0", environments=2, width=16, previous_reward=True)
    # as trained weights: then different inputs give different values
    torch.nn.init.normal_(agent.policy.head.map.weight)
    values = []
    hook = agent.policy.register_forward_hook(lambda *given: values.append(given[2].value))
    found = attention_over_memory(
        agent.player, make("manyheads/RepeatPrevious-v0"), seed=3, deterministic=deterministic
    )
    hook.remove()
    *steps, whole = values
    assert len(steps) == 51
    torch.testing.assert_close(whole[0], torch.cat([one[0] for one in steps]), rtol=0, atol=1e-5)
    assert found.weights.shape == (2, 8, 51, 51)
    assert found.parts == ("suit 0", "suit 1", "suit 2", "suit 3")
    np.testing.assert_array_equal(found.seen.sum(0), np.ones(51))
    assert (found.rewards[3:] != 0).all()


def test_an_episode_ends_where_it_ends_or_at_the_given_step():
    agent = Agent("gtrxl", "manyheads/TMaze-v0", environments=2, width=16, depth=1, minibatches=1)
    env = make("manyheads/TMaze-v0", 3, corridor=6)
    whole, cut = (watch_episode(agent.player, env, max_steps=steps) for steps in (500, 4))
    assert (len(whole.rewards), whole.ended) == (7, True)
    assert (len(cut.rewards), cut.ended) == (4, False)
    assert torch.equal(cut.observations["observation"], whole.observations["observation"][:4])


def _found(layers=2, heads=2, steps=6, parts=3):
    weights = np.tril(np.ones((layers, heads, steps, steps)))
    weights /= weights.sum(-1, keepdims=True)
    rewards = np.zeros(steps)
    rewards[-1] = 1.0
    return MemoryAttention(weights, rewards, np.random.default_rng(0).random((parts, steps)), ("a", "b", "c")[:parts])


@pytest.mark.parametrize(("by_head", "panels"), [(False, 2), (True, 4)])
def test_pictures_have_a_panel_for_each_layer_or_head(by_head, panels, tmp_path):
    figure = memory_attention(_found(), by_head=by_head)
    titled = [axes for axes in figure.axes if axes.get_title()]
    assert len(titled) == panels
    assert all("the last step reads step 0 most (17 %)" in axes.get_title() for axes in titled)
    shown = titled[0].images[0].get_array()
    # the query is the row: the first step sees itself only
    assert shown.shape == (6, 6)
    assert shown.mask[0, 1:].all()
    assert not shown.mask[-1].any()
    write_figure(tmp_path / "memory.png", figure)
    assert Image.open(tmp_path / "memory.png").width > 500


def test_pictures_of_long_episodes_show_their_last_steps_by_number():
    figure = memory_attention(_found(layers=1, heads=1, steps=130, parts=0))
    axes = figure.axes[0]
    assert axes.images[0].get_array().shape == (100, 100)
    assert axes.get_xlim() == (29.5, 129.5)
    assert "the last 100 of 130 steps" in figure.get_suptitle()


IMAGES = spaces.Box(0, 255, (30, 34, 3), np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_vit_encoder_shows_where_it_looks(channels, tmp_path):
    space = spaces.Box(0, 255, (30, 34, channels), np.uint8)
    policy = AgentModel("none", width=8, depth=1, encoder="vit-nano").seeded(space, ACTED, 1)
    frames = torch.randint(256, (5, 30, 34, channels), dtype=torch.uint8)
    found = attention_over_frames(policy, {"observation": frames})
    # patches of 4 pixels, frames padded to multiples of them
    assert found.covered == (32, 36)
    assert found.weights.shape == (5, 4, 8, 9)
    np.testing.assert_allclose(found.weights.sum((2, 3)), 1.0, atol=1e-5)
    figure = frame_attention(found.frames, found.weights.mean(1), range(5), covered=found.covered)
    write_figure(tmp_path / "frames.png", figure)
    assert Image.open(tmp_path / "frames.png").width > 500


@pytest.mark.parametrize(
    ("encoder", "space", "words"),
    [
        ("small-cnn", IMAGES, "found a convolutional network, expected a vit"),
        ("spectformer-nano", IMAGES, "found spectformer, expected a vit"),
        ("mlp", SEEN, "found an agent without images"),
    ],
)
def test_encoders_without_attention_are_refused(encoder, space, words):
    policy = AgentModel("none", width=8, depth=1, encoder=encoder).seeded(space, ACTED, 1)
    frames = torch.zeros(2, *space.shape, dtype=torch.uint8 if space is IMAGES else torch.float32)
    with pytest.raises(ArgumentError, match=words):
        attention_over_frames(policy, {"observation": frames})


def _play(capsys, *arguments):
    status = main(["rl", "play", *arguments, "--json"])
    captured = capsys.readouterr()
    return status, json.loads(captured.out) if captured.out else None, captured.err


def _saved(path, core, environment="manyheads/TMaze-v0"):
    agent = Agent(core, environment, environments=2, width=16, depth=1, minibatches=1)
    agent.about = {"experiment": {"data": {"environment": environment, "options": {"corridor": 4}}}}
    agent.save(path)


def test_play_draws_the_memory_and_says_what_the_last_step_reads(tmp_path, capsys):
    _saved(tmp_path / "agent.safetensors", "gtrxl")
    pictures = ("--attention", str(tmp_path / "memory.png"), "--gif", str(tmp_path / "play.gif"))
    status, document, _ = _play(capsys, str(tmp_path / "agent.safetensors"), "--episodes", "2", *pictures)
    assert status == 0
    assert document["lengths"] == [5, 5]
    ((step, share),) = document["attention"]["last_step_reads"]
    assert 0 <= step <= 4
    assert 0.2 <= share <= 1
    assert Image.open(tmp_path / "memory.png").width > 500


@pytest.mark.parametrize(
    ("core", "arguments", "words"),
    [
        ("lstm", ("--attention", "memory.png"), "found a core without attention, expected one of gtrxl"),
        ("gtrxl", ("--attention", "memory.jpg"), "--attention: found memory.jpg, expected a name that ends in .png"),
        ("gtrxl", ("--frame-attention", "frames.png"), "found an agent without images"),
        ("gtrxl", ("--seed", "-3"), "seed: found -3, expected 0 or more"),
        ("gtrxl", ("--environment", "manyheads/HiddenCartPole-v0"), "observation space: found Box(-2.0"),
    ],
)
def test_play_refuses_what_it_cannot_draw_in_one_line(core, arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _saved(tmp_path / "agent.safetensors", core)
    status, document, err = _play(capsys, "agent.safetensors", *arguments)
    assert (status, document) == (2, None)
    assert words in err
    assert "Traceback" not in err


def test_one_episode_has_no_standard_deviation(tmp_path, capsys):
    _saved(tmp_path / "agent.safetensors", "none")
    status, document, _ = _play(capsys, str(tmp_path / "agent.safetensors"), "--episodes", "1")
    assert (status, document["sd"], len(document["returns"])) == (0, None, 1)


def test_train_writes_the_agent_to_a_file_and_refuses_a_folder_first(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["rl", "train", "tmaze10-gtrxl", "--smoke", "model.width=8", "model.depth=1", "--json", "--out"]
    assert main([*command, str(tmp_path)]) == 2
    assert "--out: found the folder" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert main([*command, "agent.safetensors"]) == 0
    (written,) = json.loads(capsys.readouterr().out)["files"]
    assert (tmp_path / "agent.safetensors").read_bytes() == (tmp_path / written).read_bytes()


def test_an_unknown_core_is_named_before_its_settings(capsys):
    assert main(["rl", "train", "tmaze10-gtrxl", "--smoke", "model.core=gtrx"]) == 2
    assert "unknown core 'gtrx': did you mean 'gtrxl'?" in capsys.readouterr().err


def test_an_agent_keeps_what_its_file_says_until_it_learns_on(tmp_path):
    path = tmp_path / "agent.safetensors"
    _saved(path, "gtrxl")
    agent = Agent.load(path, "manyheads/TMaze-v0", environments=2)
    assert agent.about["experiment"]["data"]["options"] == {"corridor": 4}
    agent.learn(10, progress=False)
    agent.save(path)
    assert Agent.load(path).about == {}
