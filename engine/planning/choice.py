"""Which policy an engine has."""

from __future__ import annotations

from seesaw.engine.cost.engine_times import EngineTimes
from seesaw.engine.planning.cost import CostPolicy
from seesaw.engine.planning.paper import PaperPolicy
from seesaw.engine.planning.policy import Policy, StaticPolicy
from seesaw.engine.values.config import EngineConfig


def make_policy(config: EngineConfig, times: EngineTimes) -> Policy:
    """The one that the configuration names; a single layout leaves nothing to decide."""
    plan = config.plan
    if plan.is_static:
        return StaticPolicy(plan)
    return PaperPolicy(plan, config) if config.policy == "paper" else CostPolicy(plan, times, config)
