import os

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no telemetry; before Ray is imported
import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from manyheads.rl.adapters.rllib import MemoryModule
from manyheads.rl.environments.t_maze import TMazeEnv

ray.init("local", num_cpus=3, include_dashboard=False, _node_ip_address="127.0.0.1")
register_env("t-maze", lambda options: TMazeEnv(**options))
features = {"core": "gtrxl", "width": 32, "depth": 1, "memory": 8}  # arguments of MemoryFeatures
module = RLModuleSpec(module_class=MemoryModule, model_config={"max_seq_len": 16, "features": features})
config = PPOConfig().environment("t-maze", env_config={"corridor": 5}).rl_module(rl_module_spec=module)
config = config.env_runners(num_env_runners=2, num_envs_per_env_runner=8).debugging(seed=1)
config = config.training(train_batch_size_per_learner=1024, minibatch_size=256, num_epochs=4, lr=1e-3, lambda_=0.95)
algorithm, score = config.training(entropy_coeff=0.01, use_kl_loss=False).build_algo(), 0.0
while score < 0.95 and algorithm.iteration < 30:
    score = algorithm.train()["env_runners"]["episode_return_mean"]
    print(f"update {algorithm.iteration}: return {score:.2f}")
algorithm.stop()
