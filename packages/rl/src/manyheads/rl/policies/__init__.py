"""Policies: encoder, core and heads together; distributions of actions."""

from manyheads.rl.policies.actions import ActionHead
from manyheads.rl.policies.policy import Policy, PolicyOutput

__all__ = ["ActionHead", "Policy", "PolicyOutput"]
