"""Expert-choice feed-forward layer (arXiv 2202.09368): each expert picks its tokens, so loads are even.

The cost is linear in the tokens: chosen rows are gathered, multiplied in one batched matmul and added
back. A one-hot dispatch would build [T, k] tables, whose cost grows as T².
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.embeddings import Linear


class ExpertMLP(nn.Module):
    """tokens [B, T, d] -> [B, T, d]; every expert takes its top int(capacity·T/E) tokens of each image.

    No auxiliary loss is needed, and all shapes depend on T alone.
    """

    def __init__(self, dim: int, hidden: int, num_experts: int, capacity: float) -> None:
        super().__init__()
        self.capacity = capacity
        self.w1 = nn.Parameter(torch.empty(num_experts, dim, hidden))
        self.w2 = nn.Parameter(torch.empty(num_experts, hidden, dim))
        self.gate = Linear(dim, num_experts, bias=False)

    def tokens_an_expert(self, num_tokens: int) -> int:
        """Raises ValueError where the capacity leaves an expert without a single token."""
        chosen = int(self.capacity * num_tokens / self.w1.shape[0])
        if chosen < 1:
            raise ValueError(
                f"expert_capacity {self.capacity} gives each of {self.w1.shape[0]} experts none of the "
                f"{num_tokens} kept tokens; raise it, or lower num_experts or the mask ratio"
            )
        return chosen

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, T, d] -> probabilities [E, B·k] and rows [E, B·k] of the chosen tokens in [B·T, d]."""
        batch, num_tokens, _ = x.shape
        scores = self.gate(x).softmax(dim=-1, dtype=torch.float32).transpose(1, 2)
        weights, ids = scores.topk(self.tokens_an_expert(num_tokens), dim=-1, sorted=False)
        rows = ids + num_tokens * torch.arange(batch, device=x.device)[:, None, None]
        return weights.transpose(0, 1).flatten(1), rows.transpose(0, 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        weights, rows = self.route(x)
        flat = x.flatten(0, 1)
        # index_select sums its gradient in a fixed order, indexing does not.
        chosen = flat.index_select(0, rows.flatten()).unflatten(0, rows.shape)  # [E, B·k, d]
        y = torch.bmm(F.gelu(torch.bmm(chosen, self.w1)), self.w2) * weights[..., None]
        out = torch.zeros_like(flat).index_add(0, rows.flatten(), y.flatten(0, 1).to(flat.dtype))
        return out.view_as(x)
