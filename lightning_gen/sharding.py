"""Training whose gradients and optimizer states are shared out among processes, by PyTorch's `fully_shard`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


class ShardedStrategy(ModelParallelStrategy):
    """`--trainer.strategy fsdp`: each of W processes keeps 1/W of the gradients and of the optimizer's state.

    Weights are whole between steps, so that pictures are drawn, averages kept and figures measured as in any other run:
    of AdamW in float32, 16 bytes a parameter become 4 + 12 / W. A step gathers the weights once, and sums up each
    gradient where its share is kept; results are those of DDP. Checkpoints are single files, as those of one process.

    Shared out is the `network` of models that train one: `CodePrior`, `TextToImage` and their kin.

    Raises:
        TypeError: When a run starts, if the model has no such network.
    """

    lightning_restore_optimizer = True
    restore_checkpoint_after_setup = False  # weights, while they are those of one process

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Let all processes share one network."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        """Share out the network, then make the optimizers."""
        assert self.accelerator is not None
        module = cast(pl.LightningModule, self.lightning_module)
        network = getattr(module, "network", None)
        if not (module.automatic_optimization and isinstance(network, nn.Module)):
            raise TypeError(
                "The strategy fsdp shares out a network of a model such as CodePrior or TextToImage, and "
                f"{type(module).__name__} has none. Take --trainer.strategy ddp."
            )
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(module)
        self.model_to_device()
        # Parameters of a distribution are views of what the last layer gives, and nothing here is written into them.
        warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module \(\w+\) returned a view tensor")
        if not isinstance(network, FSDPModule):  # as it is in a test after training
            fully_shard(network, mesh=self.device_mesh["data_parallel"], reshard_after_forward=False)
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)  # of shares
        self.setup_precision_plugin()
        self.gather()

    def gather(self) -> None:
        """Let the weights be whole, on all ranks."""
        for part in cast(nn.Module, self.lightning_module).modules():
            if isinstance(part, FSDPModule):
                part.unshard()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        """Take a step, and have its weights."""
        result = super().optimizer_step(*args, **kwargs)
        self.gather()
        return result

    def on_validation_start(self) -> None:
        """Have the weights, also where gradients are being accumulated."""
        self.gather()

    # -- checkpoints as those of one process ------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights, on all ranks, as callbacks that write into a checkpoint expect them."""
        state = {name: _whole(value) for name, value in cast(nn.Module, self.lightning_module).state_dict().items()}
        self.gather()
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state, on all ranks."""
        state = optimizer.state_dict()
        whole = {i: {name: _whole(value) for name, value in each.items()} for i, each in state["state"].items()}
        return {**state, "state": whole}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the file, on every rank."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take the weights, before they are shared out."""
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this rank's share of each state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            shares = {
                i: {name: _share(value, parameters[i]) for name, value in each.items()}
                for i, each in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": shares})


def _whole(value: Any) -> Any:
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _share(value: Any, own: Tensor) -> Any:
    """This rank's share of a tensor of a parameter's shape; of others, such as counts of steps, all."""
    if not (isinstance(own, DTensor) and isinstance(value, Tensor) and value.shape == own.shape):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
