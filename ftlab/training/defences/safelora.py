"""Safe LoRA: what an adapter learned is projected onto the direction of alignment.

Source: Hsu et al. 2024, arXiv 2405.16833, as its authors' code has it (IBM/SafeLoRA, model.py, read
in copies). Others cite equation 1 for V, section 3.4 for C and equation 3 for the projection.
"""

from __future__ import annotations

from typing import Any

from ftlab._core.config import setting
from ftlab.training.defences._unaligned import WithUnaligned

PREFIX = "base_model.model."  # of the names of modules below an adapter


class SafeLoRA(WithUnaligned):
    """Projects a layer's update BA to C B A, where the two differ much in direction.

    C = V V^T / |V| (Frobenius norm) with V = parent - unaligned, the weights of the layer; a layer
    is projected where the cosine of BA and CBA is below the threshold. The unaligned model is the
    base that the parent was aligned from. C is no projection for |V| other than 1, so its size
    decides how much of an update is kept. The authors' code projects a number of layers, 10, unless
    it is told to go by the threshold. It fails where alignment changed few directions.
    """

    name = "safelora"
    source = "Hsu et al. 2024, arXiv 2405.16833, equations 1 and 3, fast projection"
    stage = "afterwards"
    methods = ("sft", "dpo", "kto", "rloo")
    adapters = ("lora",)

    unaligned: Any = setting(None, "Base model that the parent was aligned from")
    threshold: float = setting(
        0.5, "Cosine below which a layer is projected (the authors' code: .5)", ge=-1, le=1
    )

    def repair(self, parent: Any, child: Any) -> None:
        """Project the adapter's layers in place."""
        import torch

        vectors = self.safety_vector(parent)
        with torch.no_grad():
            for name, module in child.named_modules():
                if hasattr(module, "lora_B") and "default" in module.lora_B:
                    vector = vectors[f"{name.removeprefix(PREFIX)}.weight"]
                    self._project(module, vector)

    def _project(self, module: Any, vector: Any) -> None:
        from torch.nn.functional import cosine_similarity

        down = module.lora_A["default"].weight
        up = module.lora_B["default"].weight
        vector = vector.to(up)
        size = vector.norm()
        if not size:  # alignment left the layer alone: it has no direction
            return
        projected = vector @ (vector.T @ up) / size
        before = (up @ down).flatten()
        after = (projected @ down).flatten()
        if cosine_similarity(before, after, dim=0) < self.threshold:
            up.copy_(projected)


DEFENCE = SafeLoRA
