"""The Slot Attention module (Locatello et al. 2020, Algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPSILON = 1e-8
"""Added to attention before it is normalised over pixels."""
SEED_LOG_SIGMA = -3.0
"""What log_sigma starts at where slots start around features: they are at most 1 from zero."""


def far_apart(features: Tensor, k: int) -> Tensor:
    """Of features [n, N, F] the places [n, k] of the first, and of those that are farthest from all before.

    This is the start of Gonzalez 1985 for clusters of points, as k-means has it often.
    """
    rows = torch.arange(len(features), device=features.device)
    chosen = [torch.zeros_like(rows)]
    distance = torch.full(features.shape[:2], torch.inf, device=features.device, dtype=features.dtype)
    while len(chosen) < k:
        last = features[rows, chosen[-1]][:, None]
        distance = torch.minimum(distance, (features - last).square().sum(2))
        chosen.append(distance.argmax(1))
    return torch.stack(chosen, 1)


class SlotAttention(nn.Module):
    """K slots that compete for N features of F values, in T rounds."""

    def __init__(
        self, features: int, slot_size: int, hidden: int, iterations: int, seeds: str = "noise"
    ) -> None:
        super().__init__()
        self.slot_size, self.iterations, self.seeds = slot_size, iterations, seeds
        # Where slots start, the same for all of them: N(mu, diag(exp(log_sigma)^2)).
        self.mu = nn.Parameter(nn.init.xavier_uniform_(Tensor(1, 1, slot_size)))
        self.log_sigma = nn.Parameter(nn.init.xavier_uniform_(Tensor(1, 1, slot_size)))
        self.norm_inputs = nn.LayerNorm(features, eps=1e-3)
        self.norm_slots = nn.LayerNorm(slot_size, eps=1e-3)
        self.norm_hidden = nn.LayerNorm(slot_size, eps=1e-3)
        self.query = nn.Linear(slot_size, slot_size, bias=False)
        self.key = nn.Linear(features, slot_size, bias=False)
        self.value = nn.Linear(features, slot_size, bias=False)
        self.gru = nn.GRUCell(slot_size, slot_size)
        self.mlp = nn.Sequential(nn.Linear(slot_size, hidden), nn.ReLU(), nn.Linear(hidden, slot_size))

    @torch.no_grad()
    def start_as_k_means(self, sharpness: float) -> None:
        """Sets the weights so that rounds of attention are about those of soft k-means on normalised features.

        Queries and keys are equal maps, times `sharpness` (the inverse temperature); a slot becomes the tanh of the
        mean of its features, without regard to what it was; the residual network adds nothing. F must equal D.
        """
        d = self.slot_size
        nn.init.orthogonal_(self.key.weight)
        self.query.weight.copy_(sharpness * self.key.weight)
        nn.init.eye_(self.value.weight)
        nn.init.zeros_(self.gru.weight_hh)
        self.gru.weight_ih[: 2 * d] = 0
        self.gru.weight_ih[2 * d :] = torch.eye(d)
        self.gru.bias_ih[d : 2 * d] = -2.0  # the update gate: little of the old slot stays
        last = self.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        if self.seeds == "far":
            nn.init.zeros_(self.mu)
            nn.init.constant_(self.log_sigma, SEED_LOG_SIGMA)

    def forward(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The slots [n, K, D] of features [n, N, F], from standard normal noise [n, K, D]; and attention.

        Attention is that of the last round, [n, N, K]: the share of each slot in a feature, of sum 1 over slots.
        """
        inputs = self.norm_inputs(features)
        keys, values = self.key(inputs), self.value(inputs)  # [n, N, D]
        slots = self.mu + self.log_sigma.exp() * noise  # [n, K, D]
        if self.seeds == "far":
            seeds = far_apart(inputs.detach(), slots.shape[1])[:, :, None].expand_as(slots)
            slots = (
                slots + values.gather(1, seeds).tanh()
            )  # as the GRU would make them of these features alone
        for _ in range(self.iterations):
            queries = self.query(self.norm_slots(slots)) * self.slot_size**-0.5
            # Softmax over slots: they compete for each feature (Eq. 1).
            attention = (keys @ queries.mT).softmax(2) + EPSILON  # [n, N, K]
            weights = attention / attention.sum(1, keepdim=True)  # each slot takes a weighted mean (Eq. 2)
            updates = weights.mT @ values  # [n, K, D]
            slots = self.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
            slots = slots + self.mlp(self.norm_hidden(slots))
        return slots, attention
