"""Depth limit (docs/theory.md, section 5): how one unit of capacity spreads through residual blocks."""

from capalloc.depth_limit.block import WalkBlock
from capalloc.depth_limit.descriptions import chain, diffusion, jump
from capalloc.depth_limit.model_blocks import read
from capalloc.depth_limit.moves import point
from capalloc.depth_limit.step_law import StepLaw
from capalloc.depth_limit.whole_space import gaussian
from capalloc.results.evolution import Evolution

__all__ = ["Evolution", "StepLaw", "WalkBlock", "chain", "diffusion", "gaussian", "jump", "point", "read"]
