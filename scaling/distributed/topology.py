"""The mesh in the words of Megatron's `mpu`, which DeepSpeed asks who averages what with whom."""

from __future__ import annotations

from torch.distributed import ProcessGroup

from scaling.distributed.process_group import ProcessMesh


class Topology:
    """Data parallel: replicas. Model (or tensor) parallel: shards of the latents.

    DeepSpeed keeps one for the whole process: a process has one topology all its life.
    """

    def __init__(self, mesh: ProcessMesh) -> None:
        self.mesh = mesh

    def get_data_parallel_group(self) -> ProcessGroup:
        return self.mesh.grid.get_group("dp")

    def get_data_parallel_rank(self) -> int:
        return self.mesh.dp.index

    def get_data_parallel_world_size(self) -> int:
        return self.mesh.dp.size

    def get_model_parallel_group(self) -> ProcessGroup:
        return self.mesh.grid.get_group("latent")

    def get_model_parallel_rank(self) -> int:
        return self.mesh.latent.index

    def get_model_parallel_world_size(self) -> int:
        return self.mesh.latent.size

    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
