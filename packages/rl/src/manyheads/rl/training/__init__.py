"""Rollouts, advantages, PPO and V-MPO."""
