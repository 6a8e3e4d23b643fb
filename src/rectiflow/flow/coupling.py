"""How noise and data are paired in training."""

from abc import ABC, abstractmethod
from typing import final

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from rectiflow.flow.config import FlowConfig


class Coupling(ABC):
    """A joint law of (x, z) with the marginals that they have. Subclasses are final.

    Attributes:
        no_score: why a model trained on it has no score; empty if it has.
        whole: whether pairing must see the whole batch.
    """

    no_score: str = ""
    whole: bool = False

    @abstractmethod
    def pair(self, x: Tensor, z: Tensor, labels: Tensor | None) -> Tensor:
        """The z of each x: a permutation of z, B×…; `labels` int64 B or None."""


@final
class Independent(Coupling):
    """z as it was drawn."""

    def pair(self, x: Tensor, z: Tensor, labels: Tensor | None) -> Tensor:
        """The same z."""
        return z


@final
class OptimalTransport(Coupling):
    """The permutation with the least Σ‖x − z‖² within the batch (Pooladian et al. 2023; Tong et al. 2024).

    Only among samples of one label: otherwise the noise of a label would not be N(0, I), as it is in sampling. With
    several processes each pairs its own batch. The ODE and its likelihood stay valid, and x̂ and ẑ stay posterior means,
    but z given x is no Gaussian: there is no score, no SDE and no Langevin step.
    """

    no_score = "noise and data were paired by optimal transport in training, so z given x is not Gaussian"
    whole = True

    def pair(self, x: Tensor, z: Tensor, labels: Tensor | None) -> Tensor:
        """z in the order of least cost."""
        paired = z.clone()
        groups = torch.zeros(len(x), dtype=torch.int64) if labels is None else labels.cpu()
        for label in groups.unique():
            mine = torch.nonzero(groups == label).flatten().to(z.device)
            # ‖x − z‖² less what no permutation changes.
            cost = -(x[mine].flatten(1).double() @ z[mine].flatten(1).double().T)
            _, order = linear_sum_assignment(cost.cpu().numpy())
            paired[mine] = z[mine[torch.from_numpy(order).to(z.device)]]
        return paired


def coupling(config: FlowConfig) -> Coupling:
    """The coupling that `config` names."""
    return OptimalTransport() if config.coupling == "optimal-transport" else Independent()
