"""Training with the weights divided among processes: ``--trainer.strategy fsdp2``.

Each process keeps a part of every parameter, of its average and of its optimizer state, and has the whole weights of a
block only while that block computes (``fully_shard`` of PyTorch, known as FSDP2). What works number by number works on
the parts: AdamW, averaging, swapping. What needs whole tensors gathers them: Muon, generation, checkpoints.

A checkpoint is the same file as one of a single process, so that runs can change between one process, ``ddp`` and
``fsdp2``. The functions below leave tensors alone that are not divided, so that callers need not ask.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, StrategyRegistry
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.optim import Optimizer

from unite.errors import UserError
from unite.nn.blocks import Block
from unite.nn.decoder import DecoderBlock

STRATEGY = "fsdp2"


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for divided weights, among all processes, with checkpoints as of a single process.

    Own code because Lightning's numbers the optimizer's states by the module's order of parameters, which is not that
    of an optimizer with several groups, and because it restores checkpoints later than other strategies do.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Weights are restored where other strategies restore them: before callbacks see ``on_fit_start``."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning asks for :meth:`load_optimizer_state_dict`."""
        return True

    def setup_environment(self) -> None:
        """Divide among all processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole weights, in the first process."""
        assert self.lightning_module is not None
        state: dict[str, Any] = gather(self.lightning_module.state_dict())
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Whole state of the optimizer, in the first process."""
        state: dict[str, Any] = gather(optimizer.state_dict())
        return state

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the whole checkpoint in each process."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's part of the weights."""
        assert self.lightning_module is not None
        load_whole(self.lightning_module, checkpoint["state_dict"], strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's part of the optimizer's state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            parts = {
                number: {name: part_like(parameter, value) for name, value in state["state"][number].items()}
                for number, parameter in zip(numbers, parameters, strict=True)
                if number in state["state"]
            }
            optimizer.load_state_dict({**state, "state": parts})


StrategyRegistry.register(STRATEGY, ShardedStrategy, description="Divides the weights among all processes (FSDP2).")


def require_supported(module: nn.Module, flow_chunk: int | None, flow_target: str, trainer: Trainer) -> None:
    """Refuse what divided weights do not go with.

    Raises:
        UserError: Another strategy than ``fsdp2`` divides the weights, or a setting needs them whole.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ShardedStrategy):
        if isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
            raise UserError(
                f"--trainer.strategy: {type(strategy).__name__} divides the weights in a way that Muon and weight "
                f"averaging do not know; use {STRATEGY} or ddp"
            )
        return
    if flow_chunk is not None:
        raise UserError(
            f"model.flow_chunk is {flow_chunk}, but with --trainer.strategy {STRATEGY} it must be null; "
            "model.encoder.init_args.gradient_checkpointing saves memory there"
        )
    if flow_target != "current":
        raise UserError(
            f"model.flow_target is {flow_target}, but with --trainer.strategy {STRATEGY} it must be current"
        )
    if trainer.precision == "16-mixed":
        raise UserError(f"--trainer.precision 16-mixed does not go with --trainer.strategy {STRATEGY}; use bf16-mixed")
    if any(part._compiled_call_impl is not None for part in module.modules()):
        raise UserError(f"model.compile must be false with --trainer.strategy {STRATEGY}")


def require_undivided(trainer: Trainer, name: str, instead: str = "ddp") -> None:
    """Refuse divided weights for a callback that freezes weights, or samples with whole ones, in training.

    Args:
        trainer: The trainer, with its strategy.
        name: Name of the callback.
        instead: A strategy that serves it.

    Raises:
        UserError: The strategy divides the weights.
    """
    if isinstance(trainer.strategy, ShardedStrategy):
        raise UserError(f"{name} needs whole weights, and {STRATEGY} divides them; use --trainer.strategy {instead}")


def shard(module: nn.Module, strategy: ShardedStrategy) -> None:
    """Divide a module's parameters in place, block by block, unless they are already.

    What is not in a block (embeddings, norms, output layers) is gathered for the whole of a step.

    Args:
        module: The module; all processes get the weights of the first.
        strategy: Strategy whose processes are there.
    """
    if isinstance(module, FSDPModule):
        return
    for tensor in (*module.parameters(), *module.buffers()):
        same = tensor.detach().to(strategy.root_device)
        torch.distributed.broadcast(same, 0)
        tensor.detach().copy_(same)
    mesh = strategy.device_mesh["data_parallel"]
    for part in module.modules():
        if isinstance(part, Block | DecoderBlock):
            fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for name in ("training_step", "validation_step", "test_step", "tokenize", "reconstruct", "generate"):
        register_fsdp_forward_method(module, name)


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Have the whole weights in each process, which then may use them as often as it likes on its own."""
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def release(module: nn.Module) -> None:
    """Leave each process with its part of the weights, also after an exception within a step."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def gather(tree: Any) -> Any:
    """Nested containers with whole tensors, on the CPU, in place of divided ones; empty ones but in the first process.

    All processes have to call this together.
    """

    def whole(tensor: DTensor) -> Tensor:
        gathered = tensor.full_tensor()
        return gathered.cpu() if torch.distributed.get_rank() == 0 else gathered.new_empty(0)

    return apply_to_collection(tree, DTensor, whole)


def part_like(parameter: Tensor, value: Any) -> Any:
    """This process's part of a whole tensor, divided as a parameter of the same shape is."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    whole = value.to(parameter.device)
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def load_whole(module: LightningModule, state: Mapping[str, Tensor], strict: bool = True) -> None:
    """``load_state_dict`` of whole tensors."""
    parameters = dict(module.named_parameters())
    parts = {name: part_like(parameters[name], value) if name in parameters else value for name, value in state.items()}
    module.load_state_dict(parts, strict=strict)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory; to be called without gradients."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_matrices(rows: Tensor, parameter: Tensor) -> Tensor:
    """Whole matrices (N, rows, columns) from each process's rows, divided as a parameter of that shape is."""
    if not isinstance(parameter, DTensor):
        return rows
    shape = torch.Size((len(rows), *parameter.shape))
    stride = (parameter.numel(), parameter.shape[1], 1)
    mesh = parameter.device_mesh
    return DTensor.from_local(rows, mesh, [Shard(1)], run_check=False, shape=shape, stride=stride).full_tensor()


def own_rows(matrices: Tensor, parameter: Tensor) -> Tensor:
    """Inverse of :func:`whole_matrices`."""
    if not isinstance(parameter, DTensor):
        return matrices
    replicated = DTensor.from_local(matrices, parameter.device_mesh, [Replicate()], run_check=False)
    return replicated.redistribute(placements=[Shard(1)]).to_local()
