"""ROADMAP: an upper bound on average precision that decomposes over batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metric_learning.losses.functional import check_above_zero, mean_or_zero, mean_where
from metric_learning.losses.pairs import LabelLoss, Pairs


class RoadmapLoss(LabelLoss):
    """SupAP, which is at least one minus the average precision, plus a calibration of cosines.

    L = mean_q 1 - 1/|P_q| sum_{p in P_q} r_P(p) / (r_P(p) + sum_n h(s_qn - s_qp))
      + w (mean [a - s_qp]+ + mean [s_qn - b]+, over those of the pairs that are above 0);
    r_P(p) = 1 + the other positives whose cosine is at least s_qp, without gradient; and
    h(d) = sigmoid(d / t) for d <= 0, 1/2 + sigmoid(d / t) up to the margin m, rho d + o beyond it.
    Robust and Decomposable Average Precision (Ramzi et al. 2021), section 3, and the authors'
    code, https://arxiv.org/abs/2110.01445.

    Args:
        rank_temperature: temperature t of the ranks, in cosine; 0 would be exact ranks.
        rank_margin: m, the lead in cosine from which on a negative counts linearly.
        rank_slope: slope rho of that line, per unit of cosine.
        rank_offset: value o of that line at a lead of 0.
        calibration: weight w of the second line; 0: SupAP alone.
        calibration_positive: cosine a from which on a positive pair costs nothing.
        calibration_negative: cosine b up to which a negative pair costs nothing.

    Shape: that of `LabelLoss`; a ValueError where the temperature is 0.

    It takes B^2 (K - 1) numbers. Queries without a positive or a negative count in the calibration
    alone. The line is that of the authors' code and settings; the paper's is joined to the curve at
    m. Differs from that code: the query is no positive of its own.
    """

    def __init__(
        self,
        rank_temperature: float = 0.01,
        rank_margin: float = 0.05,
        rank_slope: float = 100.0,
        rank_offset: float = 1.44,
        calibration: float = 1.0,
        calibration_positive: float = 0.9,
        calibration_negative: float = 0.6,
    ) -> None:
        super().__init__()
        check_above_zero(rank_temperature=rank_temperature)
        self.rank_temperature = rank_temperature
        self.rank_margin = rank_margin
        self.rank_slope = rank_slope
        self.rank_offset = rank_offset
        self.calibration = calibration
        self.calibration_positive = calibration_positive
        self.calibration_negative = calibration_negative

    def compare(self, pairs: Pairs) -> Tensor:
        """Return SupAP plus the weighted calibration."""
        too_far = F.relu(self.calibration_positive - pairs.cosines)
        too_close = F.relu(pairs.cosines - self.calibration_negative)
        calibration = mean_where(too_far, pairs.is_positive & (too_far > 0))
        calibration = calibration + mean_where(too_close, pairs.is_negative & (too_close > 0))
        return self.sup_ap(pairs.complete()) + self.calibration * calibration

    def sup_ap(self, pairs: Pairs) -> Tensor:
        """Return the mean of one minus the smooth average precision, of pairs that are complete."""
        rows, columns = pairs.positions(pairs.host_positive)
        cosines = pairs.cosines[rows]  # TxM
        leads = cosines - cosines.gather(1, columns[:, None])
        is_level = ((leads.detach() >= 0) & pairs.is_positive[rows]).scatter(
            1, columns[:, None], False
        )
        among_positives = 1.0 + is_level.sum(1)
        ahead = (self.soft_step(leads) * pairs.is_negative[rows]).sum(1)

        num_positives = pairs.is_positive.sum(1)
        sums = torch.zeros(len(num_positives), dtype=cosines.dtype, device=cosines.device)
        sums = sums.index_add(0, rows, among_positives / (among_positives + ahead))
        return mean_or_zero(1.0 - sums / num_positives)

    def soft_step(self, leads: Tensor) -> Tensor:
        """Count a negative by its lead in cosine, of any shape: h above, at least the true step."""
        smooth = torch.sigmoid(leads / self.rank_temperature) + 0.5 * (leads > 0)
        return torch.where(
            leads > self.rank_margin, self.rank_slope * leads + self.rank_offset, smooth
        )
