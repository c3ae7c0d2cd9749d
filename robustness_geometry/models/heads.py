"""Last layers that several networks share."""

from torch import nn

__all__ = ["fully_connected_head"]


def fully_connected_head(inputs: int, classes: int) -> list[nn.Module]:
    """The fully connected layers of the first ImageNet networks: 4096, 4096, classes.

    ReLU and dropout 0.5 follow all but the last.

    Args:
        inputs: number of values that the feature maps leave.
        classes: number of logits.

    Example:
        >>> from robustness_geometry.models.heads import fully_connected_head
        >>> len(fully_connected_head(16, 10))
        8
    """
    return [
        nn.Flatten(),
        nn.Linear(inputs, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, classes),
    ]
