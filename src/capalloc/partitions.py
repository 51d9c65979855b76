"""Ready partitions of the inputs, for `Allocation.by` and the stochastic solver."""

from capalloc.results.regions import Partition, bands, patches, regions

__all__ = ["Partition", "bands", "patches", "regions"]
