"""What the losses of pytorch-metric-learning have in common: the arguments that are served with their default alone."""

from typing import Any

from torch import Tensor, nn


class DefaultLoss(nn.Module):
    """Refuses what is not served, checks embeddings and labels, and adds what a regulariser says.

    Attributes:
        reducer_name: class of the default reducer.
    """

    reducer_name = "MeanReducer"

    def __init__(
        self,
        distance: Any = None,
        reducer: Any = None,
        embedding_regularizer: Any = None,
        embedding_reg_weight: float = 1,
        collect_stats: bool | None = None,
    ) -> None:
        super().__init__()
        if distance is not None and (
            type(distance).__name__ != "CosineSimilarity" or (distance.p, distance.power) != (2, 1)
        ):
            raise ValueError(f"distance must be the default, CosineSimilarity(), got {distance!r}")
        if reducer is not None and type(reducer).__name__ != self.reducer_name:
            raise ValueError(f"reducer must be the default, {self.reducer_name}(), got {reducer!r}")
        if collect_stats:
            raise ValueError("collect_stats=True is not served: no statistics are kept")
        self.embedding_regularizer, self.embedding_reg_weight = embedding_regularizer, embedding_reg_weight

    def forward(
        self,
        embeddings: Tensor,  # [N, D]
        labels: Tensor | None = None,  # [N]
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The loss of the embeddings."""
        if indices_tuple is not None:
            raise ValueError("indices_tuple (the result of a miner) is not served: all pairs of the batch count")
        if ref_emb is not None or ref_labels is not None:
            raise ValueError("ref_emb and ref_labels are not served: the batch is compared with itself")
        if labels is None:
            raise ValueError("labels are required for this loss function")
        check_shapes(embeddings, labels)
        return self._regularized(self.loss(embeddings, labels.to(embeddings.device)), embeddings)

    def _regularized(
        self,
        loss: Tensor,
        embeddings: Tensor,  # [N, D]
    ) -> Tensor:
        """The loss with what the regulariser says of the embeddings."""
        if self.embedding_regularizer is None:
            return loss
        regularization: Tensor = self.embedding_regularizer(embeddings)
        return loss + regularization * self.embedding_reg_weight

    def loss(
        self,
        embeddings: Tensor,  # [N, D]
        labels: Tensor,  # [N]
    ) -> Tensor:
        """The loss of embeddings and labels that fit together."""
        raise NotImplementedError


def check_shapes(
    embeddings: Tensor,  # [N, D]
    labels: Tensor,  # [N]
) -> None:
    """Raises ValueError unless there is one label for each row of a matrix."""
    if embeddings.dim() != 2:
        raise ValueError("embeddings must be a 2D tensor of shape (batch_size, embedding_size)")
    if labels.dim() != 1:
        raise ValueError("labels must be a 1D tensor of shape (batch_size,)")
    if len(embeddings) != len(labels):
        raise ValueError("Number of embeddings must equal number of labels")
