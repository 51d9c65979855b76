from .app.callbacks.lightning_callback import CapacityCallback
from .app.callbacks.tensorboard_logger import CapacityLogger

__all__ = ["CapacityCallback", "CapacityLogger"]
