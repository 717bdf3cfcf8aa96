"""Policies, and the directories in which a training keeps them."""

from reuse_tf.policies.networks import NETWORKS, build_network
from reuse_tf.policies.policy import Sampler, build_policy, load_policy

__all__ = [
    "NETWORKS",
    "Sampler",
    "build_network",
    "build_policy",
    "load_policy",
]
